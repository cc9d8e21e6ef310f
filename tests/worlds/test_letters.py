import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from runs import SHORT, TEACHER, configs

from benchmarks.worlds import fonts, letters
from benchmarks.worlds.glyphs import CLASSES
from kdpl import ClassVectors, DomainDataModule
from kdpl.__main__ import main
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing

# the first that ships all fonts
pytest.importorskip("matplotlib", minversion="3.11")

LETTERS = Path(letters.__file__).with_name("letters.yaml")


@pytest.fixture(scope="module")
def splits():
    return letters.read_letters()


def test_every_writer_of_a_split_writes_every_letter_once_and_writes_in_no_other_split(splits):
    writers = []
    for records, number in ((splits.train, 60), (splits.val, 10), (splits.test, 50)):
        assert Counter(record.label for record in records) == dict.fromkeys(range(26), number)
        pairs = [record.source.split("/")[1:] for record in records]
        assert [letter for _, letter in pairs] == [
            splits.class_names[record.label][-1] for record in records
        ]
        writers.append({writer for writer, _ in pairs})
        assert len({*map(tuple, pairs)}) == len(records) == 26 * len(writers[-1])
    assert len(set.union(*writers)) == sum(map(len, writers))


def test_names_are_those_that_the_miniature_clips_were_pretrained_with(splits):
    known = [name for each in CLASSES for name in each.nouns]
    assert len({*splits.class_names}) == 26
    assert {*splits.class_names} <= {*known}


def test_an_image_depends_on_its_writer_and_letter_alone(splits):
    sources = [record.source for record in (*splits.train[:20], *splits.test[:20])]

    def pixels(order):
        letters._draw.cache_clear()
        np.random.seed(len(order))
        return {source: np.asarray(letters.open_letter(source)) for source in order}

    first, again = pixels(sources), pixels(sources[::-1][:-5])
    assert all((again[source] == first[source]).all() for source in again)
    assert {(image.shape, image.dtype.name) for image in first.values()} == {((32, 32, 3), "uint8")}
    assert len({image.tobytes() for image in first.values()}) == len(sources)


@pytest.mark.parametrize(
    ("source", "quarters"),
    [
        ("letters/000/a", [161.5, 154.7, 153.1, 163.5]),
        ("letters/065/m", [179.2, 178.6, 162.1, 161.3]),
        ("letters/119/z", [163.0, 156.6, 165.3, 154.7]),
    ],
)
def test_images_stay_those_that_figures_are_measured_on(source, quarters):
    pixels = np.asarray(letters.open_letter(source), dtype=float)
    # versions of FreeType and of the JPEG decoder may round differently
    assert pixels.reshape(2, 16, 2, 16, 3).mean((1, 3, 4)).ravel() == pytest.approx(quarters, abs=1)


def test_the_writing_is_darker_than_its_paper_and_covers_a_part_of_it(splits):
    for record in splits.test[::37]:
        grey = np.asarray(letters.open_letter(record.source), dtype=float).mean(axis=2)
        ink = grey < grey.max() - 60
        assert 0.05 < ink.mean() < 0.7


@pytest.mark.parametrize("module", ["matplotlib", "sklearn.datasets"])
def test_without_the_extra_quickstart_reading_is_refused(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(letters, "_photographs", letters._photographs.__wrapped__)
    with pytest.raises(
        DataError, match=r"dataset letters needs .*: pip install 'kdpl\[quickstart\]'$"
    ):
        letters.read_letters()


def test_a_matplotlib_that_lacks_a_font_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    monkeypatch.setattr(letters, "load_font", fonts.load_font.__wrapped__)
    with pytest.raises(
        DataError,
        match=r"matplotlib \S+ lacks the font DejaVuSans: install matplotlib 3.11 or newer$",
    ):
        letters.read_letters()


def test_half_of_the_letters_are_base_classes():
    data = DomainDataModule(letters.Letters(), protocol="base_to_novel", shots=2, num_workers=0)
    batches = [batch.labels for batch in data.train_dataloader_for("labeled", Resizing(8))]
    assert sorted({label.item() for labels in batches for label in labels}) == list(range(13))


def test_the_config_names_the_reader_by_its_class_path_and_runs(tmp_path):
    args = [*configs("trainer/cpu.yaml"), f"--config={LETTERS}", *TEACHER, *SHORT]
    assert (
        main(
            [
                "fit",
                *args,
                "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2",
                f"--out={tmp_path}",
            ]
        )
        == 0
    )
    assert (
        ClassVectors.load(tmp_path / "class_vectors.safetensors").class_names == letters.CLASS_NAMES
    )

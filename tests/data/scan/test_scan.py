import pytest
import runs
import world
import zoo
from safetensors.torch import load_file, save

from kdpl import DomainDataModule
from kdpl.__main__ import main
from kdpl.data.options import ReadingOptions
from kdpl.data.scan.checked import Checked
from kdpl.errors import DataError
from kdpl.runtime.run_folder import DECODED_FILE


@pytest.fixture
def pets(tmp_path):
    """Two classes of six images each, all different, without test images."""
    runs.image_folder(tmp_path / "pets", images=6, splits=("train",))
    return tmp_path / "pets"


def spoil(pets):
    """Put files that are not good images among the others; returns their paths."""
    return zoo.write(pets / "train/cat", zoo.BAD)


def fit(pets, out, *more):
    own = ["--data.init_args.num_workers=0", "--data.init_args.shots=3", f"--out={out}"]
    data = [*runs.configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={pets}"]
    return main(["fit", *data, *runs.TEACHER, *runs.SHORT, *own, *more])


def in_pets(pets, **options):
    return DomainDataModule("folder", root=str(pets), num_workers=0, **options)


def test_bad_images_are_named_before_anything_is_trained_or_written(pets, tmp_path, capsys):
    bad = spoil(pets)
    assert fit(pets, tmp_path / "run") == 1
    said = f"{len(bad)} of {12 + len(bad)} images cannot be used ("
    runs.error_line(capsys, said, *bad[:10], f"; and {len(bad) - 10} more)", "bad_images")
    assert not (tmp_path / "run" / DECODED_FILE).exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_fit_that_skips_bad_images_is_that_without_them(pets, tmp_path):
    clean, skipping = tmp_path / "clean/run", tmp_path / "skipping/run"
    assert fit(pets, clean) == runs.test(clean) == 0
    bad = spoil(pets)
    assert (
        fit(pets, skipping, "--data.init_args.reading.bad_images=skip") == runs.test(skipping) == 0
    )
    for name in ("prompts.safetensors", "class_vectors.safetensors"):
        assert save(load_file(skipping / name)) == save(load_file(clean / name))
    assert list(Checked.load(skipping / DECODED_FILE).skipped) == bad
    rows, expected = (runs.rows_of(run / "test_predictions.csv") for run in (skipping, clean))
    assert rows == expected
    assert len(rows) == 4


def test_the_images_of_a_run_are_fixed_when_it_begins(pets, tmp_path):
    looking = in_pets(pets, reading=ReadingOptions(bad_images="skip"))
    looking.reading.of_run(tmp_path / "runs/first")
    looking.reading.prepare(trains=True)
    (pets / "train/dog/5.png").write_bytes(b"broken by now")
    for folder, left in (("first", 12), ("second", 11)):
        again = in_pets(pets, reading=ReadingOptions(bad_images="skip"))
        again.reading.of_run(tmp_path / "runs" / folder)
        assert len(again.splits.train) == left


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": (0, 0, 0)}, "decoding.background is [255, 255, 255] there and [0, 0, 0] "),
        ({"skip_list": "dog/5.png"}, "images is "),
        ({"test_share": 0.5}, "test and validation images is 0 there and 12 here"),
    ],
)
def test_a_dataset_that_is_read_otherwise_is_looked_at_again(change, words, pets, tmp_path, capsys):
    if "skip_list" in change:
        (tmp_path / "skip.txt").write_text(str(pets / "train/dog/5.png"))
        change = {"skip_list": str(tmp_path / "skip.txt")}
    file = tmp_path / DECODED_FILE
    for options in ({}, {}, change):
        before = file.read_bytes() if file.exists() else None
        assert "looking at all images again" not in capsys.readouterr().err
        reading = in_pets(pets, reading=ReadingOptions(**options)).reading
        reading.of_run(tmp_path)
        reading.prepare(trains=True)
    assert f"{file} is of another dataset ({words}" in capsys.readouterr().err
    assert file.read_bytes() != before


def test_a_class_of_which_nothing_is_left_is_named(pets):
    for path in (pets / "train/dog").iterdir():
        path.write_bytes(b"")
    with world.refused(DataError, r"class 'dog' .* has no training image that can be used"):
        _ = in_pets(pets, reading=ReadingOptions(bad_images="skip")).splits

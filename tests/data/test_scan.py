import pytest
import runs
import torch
import world
import zoo
from PIL import Image
from runs import CONFIGS, SHORT, noise
from safetensors.torch import load_file

from kdpl.__main__ import main
from kdpl.data import DomainDataModule
from kdpl.data.scan import FILE, Checked
from kdpl.data.sources import open_source
from kdpl.errors import ConfigError, DataError


@pytest.fixture
def pets(tmp_path):
    """Two classes of six images each, all different, without test images."""
    for label, name in enumerate(("cat", "dog")):
        folder = tmp_path / "pets/train" / name
        folder.mkdir(parents=True)
        for i in range(6):
            noise(40, 36, seed=10 * label + i).save(folder / f"{i}.png")
    return tmp_path / "pets"


def spoil(pets):
    """Put files that are no good images among the others; gives their names."""
    return zoo.write(pets / "train/cat", zoo.BAD)


def fit(pets, out, *more):
    data = [
        f"--config={CONFIGS}/data/folder.yaml",
        f"--data.init_args.root={pets}",
        f"--config={CONFIGS}/trainer/cpu.yaml",
    ]
    own = ["--data.init_args.num_workers=0", "--data.init_args.shots=3", *SHORT, f"--out={out}"]
    return main(["fit", *data, f"--config={CONFIGS}/teacher/quickstart.yaml", *own, *more])


def test_bad_images_are_all_named_before_anything_is_trained_or_written(pets, tmp_path, capsys):
    bad = spoil(pets)
    assert fit(pets, tmp_path / "run") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {len(bad)} of {12 + len(bad)} images cannot be used (")
    assert all(each in error for each in bad)
    assert "bad_images" in error
    assert not (tmp_path / "run" / FILE).exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_fit_that_skips_bad_images_is_that_without_them_bit_by_bit(pets, tmp_path):
    assert fit(pets, tmp_path / "one/run") == runs.test(tmp_path / "one/run") == 0
    bad = spoil(pets)
    assert fit(pets, tmp_path / "other/run", "--data.init_args.bad_images=skip") == 0
    names = ("prompts.safetensors", "class_vectors.safetensors")
    for name in names:
        clean, skipped = (load_file(tmp_path / each / "run" / name) for each in ("one", "other"))
        assert clean.keys() == skipped.keys()
        assert all(torch.equal(clean[key], skipped[key]) for key in clean)
    assert list(Checked.load(tmp_path / "other/run" / FILE).skipped) == bad
    assert runs.test(tmp_path / "other/run") == 0
    rows = [runs.rows_of(tmp_path / each / "run/test_predictions.csv") for each in ("one", "other")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_images_are_looked_at_once_for_runs_beside_each_other(pets, tmp_path, monkeypatch):
    spoil(pets)
    assert fit(pets, tmp_path / "runs/teacher", "--data.init_args.bad_images=skip") == 0
    monkeypatch.setattr("kdpl.data.reading.Checked.look", None)
    assert fit(pets, tmp_path / "runs/second", "--data.init_args.bad_images=skip") == 0
    assert (tmp_path / "runs/second" / FILE).read_bytes() == (tmp_path / "runs/teacher" / FILE).read_bytes()


def test_what_is_remembered_of_other_runs_holds_until_an_image_changes(pets, tmp_path):
    data = DomainDataModule("folder", root=str(pets), bad_images="skip", num_workers=0)
    sources = data.splits.sources
    checked = Checked.look(sources, open_source)
    checked.save(tmp_path / "runs/first" / FILE)
    (pets / "train/dog/5.png").write_bytes(b"broken by now")
    for folder, left in (("first", 12), ("second", 11)):
        again = DomainDataModule("folder", root=str(pets), bad_images="skip", num_workers=0)
        again.of_run(tmp_path / "runs" / folder)
        # a run's own list is fixed when it begins
        assert len(again.splits.train) == left


def test_a_list_of_images_to_leave_out_may_be_of_three_kinds(pets, tmp_path):
    dog = str(pets / "train/dog/5.png")
    (tmp_path / "skip.txt").write_text(f"{dog}\nelsewhere.png\n")
    (tmp_path / "skip.csv").write_text(f'path,reason\n"{dog}",blurred\n')
    Checked("", "", 1, {dog: "blurred"}).save(tmp_path / "skip.json")
    for ending in ("txt", "csv", "json"):
        data = DomainDataModule("folder", root=str(pets), skip_list=str(tmp_path / f"skip.{ending}"))
        assert len(data.splits.train) == 11


@pytest.mark.parametrize(
    ("name", "content"), [("gone.txt", None), ("x.json", "{}"), ("x.yaml", ""), ("x.txt", "1.png")]
)
def test_a_list_that_does_not_fit_is_one_sentence(pets, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="skip list") as error:
        _ = DomainDataModule("folder", root=str(pets), skip_list=str(tmp_path / name)).splits
    assert world.one_sentence(error)


def test_a_class_of_which_nothing_is_left_is_named(pets):
    for path in (pets / "train/dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"class 'dog' .* has no training image that can be used") as error:
        _ = DomainDataModule("folder", root=str(pets), bad_images="skip").splits
    assert world.one_sentence(error)


def test_held_out_images_are_those_of_no_other_split_and_the_same_for_every_seed(pets):
    def splits(**options):
        return DomainDataModule("folder", root=str(pets), held_out=0.25, **options).splits

    first = splits(seed=1, unlabeled=str(pets))
    assert first.held_out
    assert [record.label for record in first.test] == [0, 0, 1, 1]
    test = {record.source for record in first.test}
    assert not test & {record.source for record in first.train}
    assert not test & set(first.unlabeled)
    assert len(first.train) == len(first.unlabeled) == 8
    assert splits(seed=2).test == first.test
    (pets / "test/cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(pets / "test/cat/1.png")
    assert not splits().held_out
    assert len(splits().train) == 12


@pytest.mark.parametrize("options", [{"held_out": 0}, {"held_out": 1.0}, {"bad_images": "ignore"}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        DomainDataModule("folder", root="x", **options)

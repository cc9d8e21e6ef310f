import pytest
import runs
import world

from kdpl import DomainDataModule
from kdpl.errors import ConfigError, DataError


@pytest.fixture
def pets(tmp_path):
    """Two classes of six images each, all different, without test images."""
    runs.image_folder(tmp_path / "pets", images=6, splits=("train",))
    return tmp_path / "pets"


def in_pets(pets, **options):
    return DomainDataModule("folder", root=str(pets), num_workers=0, **options)


def test_a_list_of_images_to_leave_out_may_be_of_two_kinds(pets, tmp_path):
    dog = str(pets / "train/dog/5.png")
    (tmp_path / "skip.txt").write_text(f"{dog}\nelsewhere.png\n")
    (tmp_path / "skip.csv").write_text(f'path,reason\n"{dog}",blurred\n')
    for file in tmp_path.glob("skip.*"):
        assert len(in_pets(pets, skip_list=str(file)).splits.train) == 11


@pytest.mark.parametrize(
    ("name", "content"), [("gone.txt", None), ("x.json", "{}"), ("x.txt", "1.png")]
)
def test_a_list_that_does_not_fit_is_one_sentence(pets, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with world.refused(DataError, "skip list"):
        _ = in_pets(pets, skip_list=str(tmp_path / name)).splits


def test_held_out_images_are_the_same_for_every_seed_and_none_beside_a_test_split(pets):
    first = in_pets(pets, held_out=0.25, seed=1, unlabeled=str(pets)).splits
    assert first.held_out
    assert in_pets(pets, held_out=0.25).splits.held_out
    assert [record.label for record in first.test] == [0, 0, 1, 1]
    assert len(first.train) == len(first.unlabeled) == 8
    assert in_pets(pets, held_out=0.25, seed=2).splits.test == first.test
    (pets / "test/cat").mkdir(parents=True)
    runs.noise(4, 4).save(pets / "test/cat/1.png")
    assert len(in_pets(pets, held_out=0.25).splits.train) == 12


@pytest.mark.parametrize("options", [{"scan": True}, {"bad_images": "skip"}])
def test_a_look_at_all_images_without_its_room_is_refused(options, pets, monkeypatch):
    monkeypatch.setattr("kdpl.runtime.plugins.load_all", lambda _: {})
    assert len(in_pets(pets).splits.train) == 12
    with world.refused(ConfigError, "need the room scan, which was removed: leave them out"):
        in_pets(pets, **options)

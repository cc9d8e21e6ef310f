import runs

from kdpl.data.options import ReadingOptions

HELD_OUT = ReadingOptions(test_share=0.25)


def test_held_out_images_are_the_same_for_every_seed_and_none_beside_a_test_split(pets):
    first = runs.in_folder(pets, reading=HELD_OUT, seed=1, unlabeled=str(pets)).splits
    assert first.held_out
    assert runs.in_folder(pets, reading=HELD_OUT).splits.held_out
    assert [record.label for record in first.test] == [0, 0, 1, 1]
    assert len(first.train) == len(first.unlabeled) == 8
    assert runs.in_folder(pets, reading=HELD_OUT, seed=2).splits.test == first.test
    (pets / "test/cat").mkdir(parents=True)
    runs.noise(4, 4).save(pets / "test/cat/1.png")
    assert len(runs.in_folder(pets, reading=HELD_OUT).splits.train) == 12

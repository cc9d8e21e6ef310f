"""Unlabelled images that are held out of distillation to compare student and target."""

import pytest
from runs import DATA, SHORT, STAGES

from kdpl.__main__ import main
from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import share_of
from kdpl.errors import DataError
from kdpl.targets.fidelity import draw_unseen


def pool_of(images, seed=1, share=1.0):
    return UnlabeledPool(Names.of(f"{number}.png" for number in range(images)), share, seed)


def drawn_from(pool, labeled=()):
    return draw_unseen(pool.selection, pool.seed, labeled)


@pytest.mark.parametrize(
    ("images", "unseen"), [(200, 100), (2000, 100), (4000, 200), (150_000, 5000)]
)
def test_a_share_within_limits_is_held_out(images, unseen):
    held_out = drawn_from(pool_of(images)).tolist()
    assert len(held_out) == len({*held_out}) == unseen
    assert held_out == sorted(held_out)


def test_it_is_drawn_by_the_seed_from_the_share_that_is_distilled_on():
    pools = [pool_of(1000, seed, 0.5) for seed in (1, 1, 2)]
    drawn = [drawn_from(pool).tolist() for pool in pools]
    for pool, held_out in zip(pools, drawn, strict=True):
        assert {*held_out} < {*share_of(1000, 0.5, pool.seed).tolist()}
    assert drawn[0] == drawn[1] != drawn[2]


def test_labelled_images_are_not_held_out_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    sources = [str(tmp_path / f"{number}.png") for number in range(240)]
    pool = UnlabeledPool(Names.of(sources), 1.0, seed=1)
    labeled = [str(tmp_path / "link" / f"{number}.png") for number in range(140)]
    assert drawn_from(pool, labeled).tolist() == [*range(140, 240)]


@pytest.mark.parametrize(("images", "labeled"), [(199, 0), (240, 141)])
def test_more_than_half_or_a_labelled_image_is_not_held_out(images, labeled):
    with pytest.raises(DataError, match=f"the pool has {images} images, too few to hold 100"):
        drawn_from(pool_of(images), (f"{number}.png" for number in range(labeled)))


def test_a_run_refuses_a_pool_that_is_too_small_before_stage_1(tmp_path, capsys):
    few = ["--student=fidelity", "--data.init_args.unlabeled_share=0.1"]
    assert main(["run", *DATA, *STAGES, *few, *SHORT, f"--out={tmp_path}/run"]) != 0
    assert "the pool has 70 images, too few to hold 100" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()

"""The configs that help to find what is wrong, over those of both stages."""

import pytest
import torch
from runs import DATA, STUDENT, TEACHER, curves_of, rows_of

from kdpl.__main__ import main


@pytest.fixture(params=["teacher", "student"])
def fit(request, tmp_path, teacher_run):
    """Function that fits a stage with a config over the quickstart's, and returns its folder."""
    stage = TEACHER
    if request.param == "student":
        stage = [*STUDENT, f"--model.init_args.teacher={teacher_run}"]

    def fitted(name, *more):
        options = [f"--config=debug/{name}", "--trainer.enable_progress_bar=false", *more]
        assert main(["fit", *DATA, *stage, *options, f"--out={tmp_path}/out"]) == 0
        return tmp_path / "out"

    return fitted


def test_one_batch_runs_from_end_to_end(fit):
    out = fit("one_batch")
    assert len(curves_of(out)["train/loss"]) == len(curves_of(out)["val/acc"]) == 1
    assert main(["test", f"--config={out}/config.yaml"]) == 0
    assert len(rows_of(out / "test_predictions.csv")) == 64


def test_ten_images_are_learned_by_heart(fit):
    losses = curves_of(fit("overfit", "--trainer.max_epochs=40"))["train/loss"]
    assert losses[-1][1] < 0.5 * losses[0][1]


def test_the_profile_names_what_took_how_long(fit):
    out = fit("profiler", "--trainer.limit_train_batches=6")
    text = (out / "fit-profile.txt").read_text()
    assert "run_training_batch" in text
    assert {epoch for _, epoch in curves_of(out)["epoch"]} == {0}
    assert all(rate > 0 for _, rate in curves_of(out)["train/device/samples_per_sec"])


def test_what_cannot_be_repeated_is_an_error_within_the_fit(fit, monkeypatch):
    switched = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, **_: switched.append(on))
    fit("deterministic", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    assert switched == [True]

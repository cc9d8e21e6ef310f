import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from runs import DATA, STUDENT, TEACHER, files_of, fit_student

from kdpl.__main__ import main
from kdpl.data import DomainDataModule
from kdpl.data.teacher_features import TeacherFeatures


def settings(teacher, cache, *more):
    quiet = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]
    place = [f"--model.init_args.teacher={teacher}", f"--data.init_args.teacher_cache={cache}"]
    return [*DATA, *STUDENT, *quiet, *place, *more]


def fill(teacher, cache, *more):
    return main(["cache", *settings(teacher, cache, *more)])


@pytest.fixture(scope="module")
def filled(tmp_path_factory, teacher_run):
    """A cache of two views of all digits; no test changes it."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    assert fill(teacher_run, cache) == 0
    return cache


def one_line(capsys, *words):
    err = capsys.readouterr().err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def everything(cache):
    features = TeacherFeatures.open(cache)
    return [features.read(row) for row in range(features.manifest.images * features.manifest.views)]


def test_it_holds_the_teachers_features_of_the_views_that_training_sees(filled, teacher_run):
    features = TeacherFeatures.open(filled)
    assert (features.manifest.images, features.manifest.views) == (700, 2), "as many views as epochs"
    data = DomainDataModule("digits", augmentation="light_affine", num_workers=0, batch_size=700)
    loader = data.train_dataloader_for("unlabeled", 32)
    from kdpl.class_vectors import ClassVectors, load_teacher

    vectors = teacher_run / "class_vectors.safetensors"
    teacher = load_teacher(teacher_run, ClassVectors.load(vectors), vectors).eval()
    for view in range(2):
        loader.sampler.set_epoch(view)
        images, indices = next(iter(loader))
        stored = torch.stack([torch.from_numpy(features.read(view * 700 + int(i)).feature) for i in indices])
        assert torch.allclose(stored.float(), teacher.features(images), rtol=1e-3, atol=1e-4)


def test_a_second_start_says_complete_and_touches_nothing(filled, teacher_run, capsys):
    before = files_of(filled)
    assert fill(teacher_run, filled) == 0
    assert "complete, 700 images, 2 views of each: nothing to do" in capsys.readouterr().err
    assert fill(teacher_run, filled, "--trainer.max_epochs=1") == 0, "its own number of views counts"
    assert files_of(filled) == before


def test_nothing_else_is_written(tmp_path, teacher_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fill(teacher_run, "cache", "--views=1", "--out=out", "--data.init_args.unlabeled_share=0.1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"manifest.json", "shard-00000.bin", ".lock"}


def test_a_share_is_filled_and_then_the_rest(tmp_path, teacher_run, filled, capsys):
    cache = tmp_path / "cache"
    assert fill(teacher_run, cache, "--data.init_args.unlabeled_share=0.25") == 0
    assert "350 features computed" in capsys.readouterr().err
    assert fill(teacher_run, cache, "--data.init_args.num_workers=2") == 0
    assert "1050 features computed" in capsys.readouterr().err
    require_same(cache, filled)


def require_same(cache, other):
    """The same views bit for bit, the same features but for the order of sums in a batch of another size."""
    for ours, theirs in zip(everything(cache), everything(other), strict=True):
        assert ours.parameters == theirs.parameters
        assert np.allclose(ours.feature, theirs.feature, rtol=0, atol=3e-4)


def test_other_views_than_it_has_are_refused(filled, teacher_run, capsys):
    assert fill(teacher_run, filled, "--views=3") == 1
    one_line(capsys, str(filled), "has 2 views of each image, 3 are asked for", "--views")


def test_all_views_are_filled_however_few_epochs_there_are(tmp_path, teacher_run, capsys):
    assert fill(teacher_run, tmp_path / "cache", "--views=3", "--data.init_args.unlabeled_share=0.1") == 0
    assert "complete, 700 images, 3 views of each, 210 features computed" in capsys.readouterr().err


def test_the_progress_bar_shows_images_a_second(tmp_path, teacher_run, capsys):
    assert fill(teacher_run, tmp_path / "cache", "--views=1", "--trainer.enable_progress_bar=true") == 0
    err = capsys.readouterr().err
    assert "700/700" in err
    assert "images/s" in err


def test_verify_finds_an_entry_of_another_image(tmp_path, teacher_run, capsys):
    cache, share = tmp_path / "cache", "--data.init_args.unlabeled_share=0.05"
    assert fill(teacher_run, cache, "--views=2", share, "--verify=70") == 0
    assert "70 entries computed again: all as they are in the cache" in capsys.readouterr().err
    features = TeacherFeatures.open(cache)
    first, second = [row for row in range(1400) if features.read(row) is not None][:2]
    features.write_features(np.array([first]), features.read(second).feature[None])
    assert fill(teacher_run, cache, share, "--verify=70") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: 1 of 70 entries of the teacher cache {cache} differ"), error
    assert f"view 0 of image {first}, by " in error


def test_verify_takes_as_many_as_asked_for_and_says_so(filled, teacher_run, capsys):
    assert fill(teacher_run, filled, "--verify=9") == 0
    assert "9 entries computed again" in capsys.readouterr().err


WRONG = {
    "no settings": ([], ["cache needs the settings that fit would be given"]),
    "no folder": ([*DATA, *STUDENT, "--model.init_args.teacher=t"], ["--data.init_args.teacher_cache FOLDER"]),
    "a teacher's settings": ([*DATA, *TEACHER], ["expected those of a student"]),
    "no teacher": (
        [*DATA, *STUDENT, "--model.init_args.teacher=t", "--data.init_args.teacher_cache=c"],
        ["t/class_vectors.safetensors does not exist"],
    ),
    "no views": (["--views=0", *DATA], ["0 is below 1"]),
    "a misspelt option": ([*DATA, *STUDENT, "--verfy=3"], ["--verfy"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_cannot_work_with_is_one_line_and_nothing_is_written(case, tmp_path, capsys, monkeypatch):
    args, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *args]) == 1
    one_line(capsys, *words)
    assert not list(tmp_path.iterdir())


def start(*args):
    command = [sys.executable, "-m", "kdpl", "cache", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_killed_start_is_gone_on_with_by_two_processes(tmp_path, teacher_run, filled):
    cache = tmp_path / "cache"
    slow = ["--data.init_args.eval_batch_size=2"]
    killed = start(*settings(teacher_run, cache, *slow))
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and killed.poll() is None and present(cache) < 40:
        time.sleep(0.01)
    if killed.poll() is None:
        assert fill(teacher_run, cache) == 1, "one fills at a time"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    there = present(cache)
    assert 40 <= there < 1400
    done = start(*settings(teacher_run, cache, "--trainer.devices=2", "--trainer.strategy=ddp", "--verify=20"))
    output = done.communicate(timeout=120)[0]
    assert done.returncode == 0, output
    assert output.count(f"complete, 700 images, 2 views of each, {1400 - there} features computed") == 1, output
    require_same(cache, filled)


def present(cache):
    if not (cache / "manifest.json").exists():
        return 0
    return 1400 - len(TeacherFeatures.open(cache).missing(np.arange(1400)))


def test_one_cache_serves_other_students(filled, teacher_run, tmp_path, monkeypatch):
    """Another seed, λ, τ, loss and student; none of them loads the teacher."""
    monkeypatch.setattr("kdpl.prompts.tuned.TunedPrompts.load_image_clip", None)
    cache = f"--data.init_args.teacher_cache={filled}"
    for number, change in enumerate(
        [
            ["--seed_everything=3"],
            ["--model.init_args.kd_weight=10", "--model.init_args.temperature=2"],
            ["--model.init_args.distill=l1"],
            ["--model.init_args.clip.model=tiny-resnet", "--model.init_args.vision_prompts.depth=0"],
        ]
    ):
        change = [*change, "--model.init_args.prompt_init=normal"]
        assert fit_student(tmp_path / str(number), teacher_run, cache, *change) == 0


def test_the_manifest_says_what_the_features_are_of(filled):
    fields = json.loads((filled / "manifest.json").read_text())
    assert fields["dataset"] == "digits"
    assert fields["augmentation"]["class"] == "kdpl.data.augmentation.LightAffine"
    assert (fields["width"], fields["image_size"], fields["view_seed"]) == (128, 32, 1)

"""Distillation from a cache of the teacher's features, against distillation with the teacher itself."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback
from plain import relative_error
from runs import DATA, STUDENT, fit_student, rows_of
from torch.multiprocessing.spawn import ProcessRaisedException

import kdpl.clip.loading
from kdpl.__main__ import main
from kdpl.clip.loading import ClipConfig
from kdpl.data import DomainDataModule
from kdpl.data.datasets import CachedView
from kdpl.data.teacher_cache import TeacherCache
from kdpl.data.teacher_features import TeacherFeatures
from kdpl.errors import ConfigError, DataError
from kdpl.prompts import PromptConfig
from kdpl.student import StudentDistillation

SETTINGS = ["--data.init_args.batch_size=16"]
"""More steps an epoch, of which the runs below do three."""


def domain(cache, **options):
    settings = {"augmentation": "light_affine", "batch_size": 50, "num_workers": 0, "teacher_cache": str(cache)}
    return DomainDataModule("digits", **{**settings, **options})


class Losses(Callback):
    def __init__(self):
        self.values, self.batches = [], []

    def on_train_batch_end(self, _, __, outputs, batch, *___):
        self.values.append(outputs["loss"].item())
        self.batches.append(batch)


class Distilled:
    """A student after two epochs of five steps each."""

    def __init__(self, teacher, folder, data, model="test-student", epochs=2, trainer=None, **options):
        torch.manual_seed(0)
        config = ClipConfig(model, world.TAG)
        settings = {"vision_prompts": PromptConfig(2, 3), "kd_weight": 20, **options}
        self.student = StudentDistillation(config, str(teacher), **settings)
        losses = Losses()
        settings = {"limit_train_batches": 5, "use_distributed_sampler": False, **(trainer or {})}
        world.quiet_trainer(folder, epochs, callbacks=[losses], **settings).fit(self.student, datamodule=data)
        self.losses, self.batches = losses.values, losses.batches
        # of a fit in processes of its own nothing comes back but what it wrote
        encoder = self.student.encoder
        self.state = {} if encoder is None else {k: v.clone() for k, v in encoder.state_dict().items()}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    world.write_teacher(folder, class_names=names, num_base=None)
    return folder


def same(one, other, most=5e-3):
    assert one.losses == pytest.approx(other.losses, rel=2e-3)
    close(one.state, other.state, most)


def close(one, other, most=5e-3):
    for name, value in one.items():
        # batch norm takes the first bias away again, so that rounding alone moves it
        if not name.endswith(("projector.layers.0.bias", "num_batches_tracked")):
            assert relative_error(value, other[name]) < most, name


VARIANTS = {
    "kl": {},
    "l1": {"distill": "l1"},
    "mse": {"distill": "mse"},
    "another image size": {"model": "test-timm", "vision_prompts": PromptConfig(depth=0)},
    "own text features": {"text_features": "student"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_from_a_cache_is_training_with_the_teacher(variant, teacher, tmp_path, monkeypatch):
    options = VARIANTS[variant]
    plain = Distilled(teacher, tmp_path, domain(None, teacher_cache=None), **options)
    filling = Distilled(teacher, tmp_path, domain(tmp_path / "cache", fill_teacher_cache=True), **options)
    for name in ("test-teacher", "test-teacher-quickgelu"):
        monkeypatch.delitem(kdpl.clip.loading._REGISTRY, name)
    assert len(filling.losses) == 10
    # the gradient of l1 has signs for values, of which rounding turns some over
    same(filling, plain, most=3e-2 if variant == "l1" else 5e-3)
    with pytest.raises(DataError, match="lacks 900 of 1400 features"):
        Distilled(teacher, tmp_path, domain(tmp_path / "cache"), **options)


@pytest.fixture(scope="module")
def filled(teacher, tmp_path_factory):
    """A cache of four views of all images."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    whole = {"fill_teacher_cache": True, "batch_size": 140}  # five steps see all images
    Distilled(teacher, folder.parent, domain(folder, **whole), epochs=4)
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_complete_cache_needs_no_teacher_at_all(teacher, filled, tmp_path, monkeypatch, num_workers):
    plain = Distilled(teacher, tmp_path, domain(None, teacher_cache=None))
    for name in ("test-teacher", "test-teacher-quickgelu"):
        monkeypatch.delitem(kdpl.clip.loading._REGISTRY, name)
    cached = Distilled(teacher, tmp_path, domain(filled, num_workers=num_workers))
    assert cached.student.teacher.module.tower is None
    assert all(isinstance(batch, CachedView) for batch in cached.batches)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(cached.batches, plain.batches, strict=True))
    same(cached, plain)
    with pytest.raises(ConfigError, match="the teacher's tower is not there"):
        cached.student.teacher.module.features(plain.batches[0][0])


def test_what_is_filled_in_training_is_what_the_teacher_gives(teacher, tmp_path):
    filling = Distilled(teacher, tmp_path, domain(tmp_path / "cache", fill_teacher_cache=True))
    features = TeacherFeatures.open(tmp_path / "cache")
    for batch in filling.batches:
        expected = filling.student.teacher.module.features(batch.image).half()
        stored = torch.stack([torch.from_numpy(features.read(row).feature) for row in batch.row.tolist()])
        assert torch.allclose(stored, expected, rtol=0, atol=2e-4)
    assert filling.student.cache.num_missing == 1400


def test_features_are_written_once_and_read_from_then_on(teacher, tmp_path, monkeypatch):
    written = []
    write = TeacherCache.write
    monkeypatch.setattr(
        TeacherCache, "write", lambda self, rows, f: written.extend(rows.tolist()) or write(self, rows, f)
    )
    fill = {"fill_teacher_cache": True}
    first = Distilled(teacher, tmp_path, domain(tmp_path / "cache", **fill))
    assert len(written) == len(set(written)) == 500
    again = Distilled(teacher, tmp_path, domain(tmp_path / "cache", **fill))
    assert len(written) == 500
    assert again.losses == first.losses, "rounded the first time as well"


def test_a_cache_of_another_teacher_is_refused(filled, tmp_path):
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    world.write_teacher(tmp_path, class_names=names, num_base=None, seed=1)
    with pytest.raises(
        DataError, match=r"is of something else \(the teacher is \w+ there and \w+ here\): choose"
    ) as error:
        Distilled(tmp_path, tmp_path, domain(filled))
    assert world.one_sentence(error)


def test_a_student_of_another_image_size_needs_a_cache_of_its_own(teacher, filled, tmp_path):
    with pytest.raises(DataError, match="image size of the student is 32 there and 48 here"):
        Distilled(teacher, tmp_path, domain(filled), **VARIANTS["another image size"])


def test_two_processes_write_their_own_rows_and_one_reads_them(teacher, tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork"}
    filling = domain(tmp_path / "cache", fill_teacher_cache=True, batch_size=25)
    Distilled(teacher, tmp_path, filling, trainer=two)
    features = TeacherFeatures.open(tmp_path / "cache")
    assert len(features.missing(np.arange(1400))) == 1400 - 2 * 5 * 50
    plain = Distilled(teacher, tmp_path, domain(None, teacher_cache=None))
    read = Distilled(teacher, tmp_path, domain(tmp_path / "cache", fill_teacher_cache=True))
    assert not torch.cat([batch.feature for batch in read.batches]).isnan().any(), "the very images of one process"
    same(read, plain)


def test_processes_that_would_share_a_row_may_not_fill(teacher, tmp_path):
    filling = domain(tmp_path / "cache", fill_teacher_cache=True, unlabeled_share=0.05, batch_size=50)
    with pytest.raises(
        ProcessRaisedException, match="35 unlabelled images do not fill one batch on each of 2 processes"
    ):
        Distilled(teacher, tmp_path, filling, trainer={"devices": 2, "strategy": "ddp_fork"})


# on the command line


def losses(out):
    return [float(row["train/loss"]) for row in rows_of(out / "metrics.csv") if row["train/loss"]]


def final(out):
    return torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def as_one(out, other):
    assert losses(out) == pytest.approx(losses(other), rel=5e-3)
    close(final(out), final(other))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, teacher_run):
    out = tmp_path_factory.mktemp("plain") / "student"
    assert fit_student(out, teacher_run, *SETTINGS) == 0
    return out


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory, teacher_run):
    cache = tmp_path_factory.mktemp("digits") / "cache"
    args = [*DATA, *STUDENT, f"--model.init_args.teacher={teacher_run}", f"--data.init_args.teacher_cache={cache}"]
    assert main(["cache", *args, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]) == 0
    return cache


def test_the_quickstart_from_a_cache_is_the_quickstart(tmp_path, teacher_run, plain_run, digits_cache):
    out = tmp_path / "student"
    assert fit_student(out, teacher_run, *SETTINGS, f"--data.init_args.teacher_cache={digits_cache}") == 0
    as_one(out, plain_run)
    seed = ["--seed_everything=2", f"--data.init_args.teacher_cache={digits_cache}"]
    assert fit_student(tmp_path / "other", teacher_run, *SETTINGS, *seed) == 0
    assert losses(tmp_path / "other") != losses(out)


def test_a_run_may_go_on_with_the_same_views_and_no_others(tmp_path, teacher_run, plain_run, digits_cache, capsys):
    def cut(self, *_):
        if self.current_epoch == 1:
            raise RuntimeError("cut")

    out = tmp_path / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentDistillation, "on_train_epoch_start", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit_student(out, teacher_run, *SETTINGS)
    manifest = json.loads((digits_cache / "manifest.json").read_text())
    for change in ({"view_seed": 5}, {"views": 1}):
        other = tmp_path / f"{next(iter(change))}"
        TeacherFeatures.create(
            other, type(TeacherFeatures.open(digits_cache).manifest)(**{**fields(manifest), **change})
        )
        options = [f"--data.init_args.teacher_cache={other}", "--data.init_args.fill_teacher_cache=true"]
        capsys.readouterr()
        assert fit_student(out, teacher_run, *SETTINGS, *options) == 1
        assert "the run began with other views of its images (one in each epoch, seed 1)" in capsys.readouterr().err
    assert fit_student(out, teacher_run, *SETTINGS, f"--data.init_args.teacher_cache={digits_cache}") == 0
    as_one(out, plain_run)


def fields(manifest):
    return {name: value for name, value in manifest.items() if name not in ("kind", "version", "dtype")}


def start(*args):
    command = [sys.executable, "-m", "kdpl", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_fit_that_is_killed_while_it_fills_leaves_a_cache_to_go_on_with(tmp_path, teacher_run, plain_run):
    out, cache = tmp_path / "student", tmp_path / "cache"
    args = [*DATA, *STUDENT, f"--model.init_args.teacher={teacher_run}", f"--out={out}", "--trainer.max_epochs=9"]
    args += [f"--data.init_args.teacher_cache={cache}", "--data.init_args.fill_teacher_cache=true", *SETTINGS]
    killed = start("fit", *args, "--trainer.enable_progress_bar=false")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and killed.poll() is None:
        if (cache / "manifest.json").exists():
            features = TeacherFeatures.open(cache)
            if len(features.missing(np.arange(700))) < 650:
                break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    features = TeacherFeatures.open(cache)
    there = 6300 - len(features.missing(np.arange(6300)))
    assert 50 < there < 6300
    options = [f"--data.init_args.teacher_cache={cache}", "--data.init_args.fill_teacher_cache=true"]
    assert fit_student(tmp_path / "again", teacher_run, *SETTINGS, *options) == 0
    as_one(tmp_path / "again", plain_run)

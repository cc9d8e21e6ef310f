"""What the projector's batch norm computes on several processes, where one process would see the whole batch."""

import fits
import pytest
import torch
import world
from lightning.pytorch import Callback
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

import kdpl.student
from kdpl.data import DomainDataModule
from kdpl.student import StudentDistillation

TWO = {"devices": 2, "strategy": "ddp_fork"}


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=fits.DIGITS, num_base=None)
    return folder


def student(teacher_folder, **options):
    return fits.student(teacher_folder, StudentDistillation, **options)


@pytest.fixture(scope="module")
def two(teacher_folder, tmp_path_factory):
    """What two processes with 12 images each saw, without validation."""
    folder = tmp_path_factory.mktemp("two") / "fit"
    return fits.fit(student(teacher_folder), fits.digits(12), folder, processes=2, limit_val_batches=0)


class PartOf(DomainDataModule):
    """The batches of one of two processes, for a process that is alone."""

    part = 0

    def _processes(self):
        return self.part, 2


def alone(teacher_folder, folder, part):
    data = PartOf("digits", batch_size=12, augmentation="light_affine", num_workers=0)
    data.part = part
    (seen,) = fits.fit(student(teacher_folder), data, folder, steps=1, epochs=1, limit_val_batches=0)
    return seen


def close(statistics, expected):
    assert statistics.keys() == expected.keys()
    assert len(expected) == 2
    return all(torch.allclose(statistics[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)


def test_each_process_normalises_by_its_own_images(teacher_folder, two, tmp_path):
    for rank in (0, 1):
        seen = alone(teacher_folder, tmp_path / str(rank), rank)
        assert seen["steps"][0]["views"] == two[rank]["steps"][0]["views"]
        assert two[rank]["steps"][0]["loss"] == pytest.approx(seen["steps"][0]["loss"], rel=1e-5)
        assert close(two[rank]["statistics"][0], seen["statistics"][0])
    (whole,) = fits.fit(student(teacher_folder), fits.digits(24), tmp_path / "one", steps=1, epochs=1)
    mean = sum(process["steps"][0]["loss"] for process in two) / 2
    assert mean != pytest.approx(whole["steps"][0]["loss"], rel=1e-3), "it does make a difference"


def test_validation_and_checkpoint_have_the_first_processs_running_statistics(teacher_folder, tmp_path):
    first, second = fits.fit(student(teacher_folder), fits.digits(12), tmp_path / "fit", processes=2, epochs=1)
    assert not close(second["statistics"][-1], first["statistics"][-1])
    assert close(second["end"], first["statistics"][-1])
    assert close(first["end"], first["statistics"][-1])


class Shared(fits.Notes):
    """Notes the statistics with which the epoch is judged."""

    def on_train_epoch_end(self, _, pl_module):
        self.judged = fits.statistics(pl_module)

    def more(self, trainer):
        (choice,) = (c for c in trainer.callbacks if isinstance(c, kdpl.student.BestOnBaseTest))
        return {"judged": self.judged, "accuracy": choice.accuracy, "epoch": choice.epoch}


def test_an_epoch_is_chosen_by_the_statistics_that_the_checkpoint_holds(teacher_folder, tmp_path):
    """Without validation nothing else gives the other processes those of the first."""
    module = student(teacher_folder, choice="best_on_base_test")
    first, second = fits.fit(
        module, fits.digits(12), tmp_path / "fit", processes=2, notes=Shared, steps=5, limit_val_batches=0
    )
    assert first["accuracy"] == second["accuracy"] > 0
    assert first["epoch"] == second["epoch"]
    assert close(second["end"], first["end"])
    assert not close(first["statistics"][4], second["statistics"][4])


def test_synchronised_batch_norm_is_refused_on_the_cpu(teacher_folder, tmp_path):
    sync = {**TWO, "sync_batchnorm": True, "use_distributed_sampler": False}
    with pytest.raises(ProcessRaisedException, match=r"trainer\.sync_batchnorm is true, and on the CPU torch has no"):
        world.quiet_trainer(tmp_path, **sync).fit(student(teacher_folder), datamodule=fits.digits(12))


class Kinds(Callback):
    def on_fit_start(self, _, pl_module):
        norms = {type(part) for part in pl_module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
        names = ", ".join(kind.__name__ for kind in norms)
        raise RuntimeError(f"batch norms: {names}.")


def test_synchronised_batch_norm_reaches_the_projector(teacher_folder, tmp_path, monkeypatch):
    """The projector is made once the teacher's width is known, which must be before the trainer looks for it."""
    monkeypatch.setattr(kdpl.student, "require_devices_for_batch_norm", lambda _: None)
    monkeypatch.setattr(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)
    sync = {**TWO, "sync_batchnorm": True, "use_distributed_sampler": False, "callbacks": [Kinds()]}
    with pytest.raises(ProcessRaisedException, match=r"batch norms: SyncBatchNorm\."):
        world.quiet_trainer(tmp_path, **sync).fit(student(teacher_folder), datamodule=fits.digits(12))

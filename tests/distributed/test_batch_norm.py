"""Batch norm of the projector on several processes, where one process would see the whole batch."""

import fits
import pytest
import torch
import world
from lightning.pytorch import Callback
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from kdpl.callbacks.choice import BestOnBaseTest
from kdpl.student import StudentDistillation

pytestmark = pytest.mark.slow


class Noted(fits.Notes):
    """Notes the statistics with which the epoch is judged as well."""

    def on_train_epoch_end(self, _, pl_module):
        self.judged = fits.statistics(pl_module)

    def more(self, trainer):
        (choice,) = (c for c in trainer.callbacks if isinstance(c, BestOnBaseTest))
        return {"judged": self.judged, "accuracy": choice.accuracy, "epoch": choice.epoch}


def fit(teacher_folder, folder, processes=1, images=12, notes=fits.Notes, **options):
    choice = "best_on_base_test" if notes is Noted else "last"
    student = fits.student(teacher_folder, StudentDistillation, choice=choice)
    return fits.fit(student, fits.digits(images), folder, processes=processes, notes=notes, **options)


def close(statistics, expected):
    assert statistics.keys() == expected.keys()
    assert len(expected) == 2
    return all(torch.allclose(statistics[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)


def test_each_process_normalises_by_its_own_images(teacher_folder, tmp_path, monkeypatch):
    two = fit(teacher_folder, tmp_path / "two", processes=2, epochs=1, steps=1, limit_val_batches=0)
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            # this process alone gets the batches of one of two
            patch.setattr("kdpl.data.DomainDataModule._processes", lambda _, rank=rank: (rank, 2))
            (seen,) = fit(teacher_folder, tmp_path / str(rank), epochs=1, steps=1, limit_val_batches=0)
        assert seen["steps"][0]["views"] == two[rank]["steps"][0]["views"]
        assert two[rank]["steps"][0]["loss"] == pytest.approx(seen["steps"][0]["loss"], rel=1e-5)
        assert close(two[rank]["statistics"][0], seen["statistics"][0])
    (whole,) = fit(teacher_folder, tmp_path / "one", images=24, epochs=1, steps=1)
    mean = sum(process["steps"][0]["loss"] for process in two) / 2
    assert mean != pytest.approx(whole["steps"][0]["loss"], rel=1e-3), "it does make a difference"


def test_validation_and_checkpoint_have_the_running_statistics_of_the_first_process(teacher_folder, tmp_path):
    first, second = fit(teacher_folder, tmp_path / "fit", processes=2, epochs=1, steps=5)
    assert not close(second["statistics"][-1], first["statistics"][-1])
    assert close(second["end"], first["statistics"][-1])
    assert close(first["end"], first["statistics"][-1])


def test_an_epoch_is_chosen_by_the_statistics_that_the_checkpoint_holds(teacher_folder, tmp_path):
    options = {"processes": 2, "steps": 5, "limit_val_batches": 0}
    first, second = fit(teacher_folder, tmp_path / "fit", notes=Noted, **options)
    assert first["accuracy"] == second["accuracy"] > 0
    assert first["epoch"] == second["epoch"]
    assert close(second["end"], first["end"])
    assert not close(first["statistics"][4], second["statistics"][4])


class Kinds(Callback):
    """Raises the kinds of batch norms there are, as nothing else comes back from a forked process."""

    def on_fit_start(self, _, pl_module):
        norms = (nn.BatchNorm1d, nn.SyncBatchNorm)
        names = {type(part).__name__ for part in pl_module.modules() if isinstance(part, norms)}
        raise RuntimeError(f"batch norms: {', '.join(names)}.")


def test_synchronised_batch_norm_reaches_the_projector(teacher_folder, tmp_path, monkeypatch):
    # DistributedDataParallel refuses them on the CPU
    monkeypatch.setattr("lightning.pytorch.strategies.DDPStrategy.configure_ddp", lambda _: None)
    sync = {"devices": 2, "strategy": "ddp_fork", "sync_batchnorm": True, "use_distributed_sampler": False}
    student = fits.student(teacher_folder, StudentDistillation)
    trainer = world.quiet_trainer(tmp_path, callbacks=[Kinds()], **sync)
    with pytest.raises(ProcessRaisedException, match=r"batch norms: SyncBatchNorm\."):
        trainer.fit(student, datamodule=fits.digits(12))

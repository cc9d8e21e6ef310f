"""Two processes and more compute what one does with the same global batches, batch norm included."""

import hashlib
import os
from collections import Counter
from datetime import timedelta
from functools import partial

import pytest
import torch
import world
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from runs import rows_of
from safetensors.torch import load_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdpl.benchmark.choice import BestOnBaseTest
from kdpl.callbacks.results import SaveTestResults
from kdpl.clip import ClipConfig
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import Unknown
from kdpl.data.datamodule import DomainDataModule
from kdpl.prompts import PromptConfig
from kdpl.prompts.vision import VisionPrompts
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER
from kdpl.student import StudentDistillation
from kdpl.targets.fidelity import Fidelity
from kdpl.teacher import TeacherPromptTuning

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 2, 4


class WithoutBatchNorm(StudentDistillation):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.encoder.projector.layers[1] = nn.Identity()


def teacher(_=None):
    torch.manual_seed(0)
    prompts = PromptConfig(2, 3)
    return TeacherPromptTuning(
        ClipConfig("test-teacher", world.TAG), vision_prompts=prompts, text_prompts=prompts
    )


def student(folder, kind=StudentDistillation, **options):
    return world.make_student(folder, kind=kind, kd_weight=20, **options)


class Notes(Callback):
    """Writes notes of its process to a file, as nothing else comes back from a forked process.

    Of each step the loss, the learning rate, a digest of each view, and the running statistics of batch norms after it;
    at the end the metrics, and what ``more`` returns.
    """

    def __init__(self, folder, more):
        self.folder, self.more = folder, more
        self.steps, self.statistics = [], []

    def on_train_batch_start(self, trainer, _, batch, *__):
        views = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:12] for image in batch.images]
        self.steps.append({"lr": trainer.optimizers[0].param_groups[0]["lr"], "views": views})

    def on_train_batch_end(self, _, pl_module, outputs, *__):
        self.steps[-1]["loss"] = outputs["loss"].item()
        buffers = pl_module.named_buffers()
        self.statistics.append({name: t.clone() for name, t in buffers if "running" in name})

    def on_train_end(self, trainer, pl_module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        notes = {"steps": self.steps, "metrics": metrics, "statistics": self.statistics}
        more = {"more": self.more(trainer)}
        torch.save({**notes, **more}, self.folder / f"{trainer.global_rank}.pt")


def fit(
    module, data, folder, processes=1, more=lambda _: None, epochs=EPOCHS, callbacks=(), **options
):
    """Fit with notes in a new folder; returns those of each process."""
    folder.mkdir()
    # commands leave it behind, and with it Lightning seeds several processes again, but not one alone
    os.environ.pop("PL_GLOBAL_SEED", None)
    several = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    settings = {
        "limit_train_batches": STEPS,
        "limit_val_batches": 1.0,
        "use_distributed_sampler": False,
        "callbacks": [*callbacks, Notes(folder, more)],
        **several,
    }
    trainer = world.quiet_trainer(folder, epochs, **{**settings, **options})
    trainer.fit(module, datamodule=data)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


MODULES = {
    "teacher": teacher,
    "student": student,
    "student without batch norm": partial(student, kind=WithoutBatchNorm),
}


@pytest.fixture(scope="module", params=[*MODULES][:2])
def fitted(request, tmp_path_factory, teacher_folder):
    """A stage fitted by one process with 24 images a step, and a function that fits it in another way."""
    make, root = MODULES[request.param], tmp_path_factory.mktemp(request.param)

    def otherwise(name, batch_size, data=None, **options):
        images = world.digits(batch_size, **(data or {}))
        return fit(make(teacher_folder), images, root / name, **options)

    return otherwise("one", 24)[0], otherwise


def together(processes, per_step=1):
    """The steps of all processes as those of one that has all their images."""
    in_turn = zip(*(notes["steps"] for notes in processes), strict=True)
    parts = [step for steps in in_turn for step in steps]
    size = len(processes) * per_step
    groups = [parts[i : i + size] for i in range(0, len(parts), size)]
    return [
        {
            # of accumulated gradients each loss is divided by their number already
            "loss": sum(step["loss"] for step in group) / len(processes),
            "lr": {step["lr"] for step in group},
            "views": Counter(view for step in group for view in step["views"]),
        }
        for group in groups
    ]


def require_same(processes, one, per_step=1):
    steps, expected = together(processes, per_step), together([one])
    assert len(steps) == len(expected) == EPOCHS * STEPS
    for name in ("views", "lr"):
        assert [step[name] for step in steps] == [step[name] for step in expected]
    losses = [step["loss"] for step in expected]
    # a small loss after a large one has the rounding of the large one
    tolerance = {"rel": 1e-5, "abs": 1e-6 * max(losses)}
    assert [step["loss"] for step in steps] == pytest.approx(losses, **tolerance)
    assert max(losses) > 1.001 * min(losses), "a loss that does not change proves nothing"


def test_losses_views_and_learning_rates_are_those_of_one_process(fitted):
    one, otherwise = fitted
    # Lightning may shard the data as well, and finds it done
    several = otherwise("3 processes", 8, processes=3, use_distributed_sampler=True)
    require_same(several, one)
    losses = {name: value for name, value in one["metrics"].items() if name.startswith("train/")}
    assert losses
    for notes in several:
        # what is logged is of all images: the same on all processes
        logged = {name: notes["metrics"][name] for name in losses}
        assert logged == pytest.approx(losses, rel=1e-5, abs=1e-5)
        assert notes["metrics"]["val/acc"] == one["metrics"]["val/acc"]
        statistics = notes["statistics"]
        torch.testing.assert_close(statistics[0], one["statistics"][0], rtol=1e-5, atol=1e-6)
        assert statistics[-1].keys() == several[0]["statistics"][-1].keys()
        for name, values in statistics[-1].items():
            assert torch.equal(values, several[0]["statistics"][-1][name]), name


def test_fidelity_is_that_of_one_process(tmp_path, teacher_folder):
    (one,), several = (
        fit(
            student(teacher_folder),
            world.digits(24 // n, shots=2),
            tmp_path / str(n),
            n,
            callbacks=[Fidelity()],
        )
        for n in (1, 3)
    )
    for notes in several:
        metrics = notes["metrics"]
        assert metrics["val/fidelity"] == pytest.approx(one["metrics"]["val/fidelity"], abs=1e-6)
        assert metrics["val/kl"] == pytest.approx(one["metrics"]["val/kl"], rel=1e-4)
        assert metrics["pool/unseen"] == 100
    require_same(several, one)


def test_prompts_that_processes_round_differently_start_equal(
    teacher_folder, tmp_path, monkeypatch
):
    def init(prompts, *_):
        prompts.tokens.data += distributed.get_rank()

    monkeypatch.setattr(VisionPrompts, "init_at_mean_tokens", init)
    module = student(teacher_folder, prompt_init="mean_token")
    options = {"epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    prompts = lambda trainer: trainer.lightning_module.encoder.prompts.tokens.data  # noqa: E731
    first, second = fit(module, world.digits(12), tmp_path / "fit", 2, prompts, **options)
    assert torch.equal(first["more"], second["more"])


def test_the_same_epoch_is_chosen_as_by_one_process(teacher_folder, tmp_path):
    def choice(trainer):
        (chosen,) = (c for c in trainer.callbacks if isinstance(c, BestOnBaseTest))
        return chosen.accuracy, chosen.epoch

    choices = []
    for n in (1, 2):
        data, choosing = world.digits(24 // n), [BestOnBaseTest()]
        folder = tmp_path / str(n)
        notes = fit(student(teacher_folder), data, folder, n, choice, callbacks=choosing)
        choices += [of_process["more"] for of_process in notes]
    assert choices[0][0] > 0
    assert len(set(choices)) == 1


def test_scores_of_validation_and_pool_are_those_of_one_process(teacher_folder, tmp_path):
    scores = []
    for n in (1, 4):  # of which two have fewer of the 198 images
        module = student(teacher_folder, kind=WithoutBatchNorm)
        options = {"epochs": 1, "limit_train_batches": 2}
        fit(module, world.digits(24 // n), tmp_path / str(n), n, **options)
        folder = tmp_path / str(n) / CLASSIFIER_FOLDER
        scores.append(load_file(folder / HeldOutScores.file))
        scores[-1]["pool"] = load_file(folder / Unknown.file)["center"]
    assert len(scores[0]["scores"]) == 198
    for name in ("scores", "label_scores", "pool"):
        torch.testing.assert_close(scores[1][name], scores[0][name], rtol=1e-3, atol=1e-5)


def two():
    """Two processes of which one that waits in vain ends with an error."""
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=30))
    return {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}


@pytest.mark.parametrize("ranks", [(0,), (0, 1)], ids=["one has all", "each has all"])
def test_shared_validation_images_count_once(ranks, teacher_folder, tmp_path, monkeypatch):
    def unshared(data):
        if data.trainer.global_rank not in ranks:
            return []
        return data.evaluation_dataloader_for("val", data.trainer.lightning_module.needs.resizing)

    monkeypatch.setattr(DomainDataModule, "val_dataloader", unshared)
    scores = []
    for options in ({}, two()):
        folder = tmp_path / str(len(scores))
        module = student(teacher_folder, kind=WithoutBatchNorm)
        trainer = world.quiet_trainer(folder, 1, limit_train_batches=2, **options)
        trainer.fit(module, datamodule=world.digits(24 // trainer.world_size))
        scores.append(load_file(folder / CLASSIFIER_FOLDER / HeldOutScores.file))
    assert len(scores[0]["scores"]) == 198
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fitted", ["teacher", "student without batch norm"], indirect=True)
def test_gradient_accumulation_is_a_larger_batch(fitted):
    one, otherwise = fitted
    options = {"limit_train_batches": 2 * STEPS, "accumulate_grad_batches": 2}
    require_same(otherwise("accumulation", 12, **options), one, per_step=2)


def test_each_test_image_is_counted_once_with_the_same_prediction(tmp_path):
    """899 images: no three processes have equally many."""
    rows, results, expected = {}, {}, []
    for n in (1, 3):
        folder = tmp_path / str(n)
        several = {"devices": n, "strategy": "ddp_fork"} if n > 1 else {}
        settings = {"callbacks": [SaveTestResults()], "use_distributed_sampler": n == 3, **several}
        trainer = world.quiet_trainer(folder, **settings)
        trainer.test(teacher(), datamodule=world.digits(8), verbose=False)
        rows[n], results[n] = rows_of(folder / "test_predictions.csv"), read_results(folder)
        probabilities = [float(row.pop("probability")) for row in rows[n]]
        expected.append(probabilities)
        assert probabilities == pytest.approx(expected[0], abs=2e-6)
    assert [int(row["index"]) for row in rows[1]] == list(range(899))
    assert results[3] == results[1]
    assert rows[3] == rows[1]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_no_frozen_tower_is_sent_reduced_or_saved(stage, teacher_folder, tmp_path):
    def sent(trainer):
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        return {
            "parameters": {name: p.requires_grad for name, p in wrapper.named_parameters()},
            "buffers": list(wrapper.named_module_buffers),
            "checkpoint": list(trainer.lightning_module.state_dict()),
        }

    module, options = MODULES[stage](teacher_folder), {"epochs": 1, "limit_train_batches": 1}
    notes, _ = fit(module, world.digits(12), tmp_path / "fit", 2, sent, **options)
    parameters = notes["more"]["parameters"]
    assert all(parameters.values())
    assert all("prompts" in name or "projector" in name for name in parameters)
    # nor the class vectors
    assert all("projector" in name for name in notes["more"]["buffers"])
    assert not any("tower" in name for name in notes["more"]["checkpoint"])

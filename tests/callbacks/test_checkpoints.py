import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import world
from runs import DATA, SHORT, TEACHER, at_step, curves_of, fit_teacher, start_process
from safetensors.torch import load_file
from world import Distilled

from kdpl.callbacks.checkpoints import CheckpointFiles, require_intact
from kdpl.class_vectors import ClassVectors
from kdpl.data.augmentation import LightAffine
from kdpl.data.needs import Needs
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError, ConfigError
from kdpl.module import ORIGIN_KEY
from kdpl.runtime.origin import difference
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, METRICS_FILE, PROMPTS_FILE

# five steps an epoch, and a checkpoint after each
STEPS = ["--trainer.limit_train_batches=5", "--checkpoint_every=1"]


def test_a_disk_that_fills_up_leaves_the_one_before(tmp_path, monkeypatch):
    def full(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    file = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"epoch": 1}, file)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            CheckpointFiles().save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, torch.zeros(2)])
def test_a_file_that_is_not_a_checkpoint_of_a_run_is_named(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    match = r"x\.ckpt is not a run's checkpoint: give one written by fit"
    with world.refused(ArtifactError, match):
        require_intact(tmp_path / "x.ckpt")


def test_without_checkpoints_a_fit_starts_over_and_has_the_metrics_of_this_start_alone(tmp_path):
    (tmp_path / METRICS_FILE).write_text("step,train/loss\n999,1.0\n")
    options = ["--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"]
    assert fit_teacher(tmp_path, *options) == 0
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / CLASS_VECTORS_FILE).is_file()
    assert 999 not in [step for step, _ in curves_of(tmp_path)["train/loss"]]


def test_no_checkpoint_is_saved_between_accumulated_batches(tmp_path, monkeypatch):
    save, done = CheckpointFiles.save_checkpoint, []

    def note(self, checkpoint, path, **options):
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done.append(progress["current"]["ready"])
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", note)
    two = [*STEPS, "--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=1"]
    # of five batches, the steps are after the second, the fourth and the last
    with at_step(2, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        fit_teacher(tmp_path / "out", *two)
    assert fit_teacher(tmp_path / "out", *two) == 0
    assert done == [2, 4, 5, 2, 4, 5]


def origin_of(split="labeled", world_size=1, labels=None, **options):
    domain = world.digits(16, **options)
    module = SimpleNamespace(needs=Needs(split, Resizing(32)))
    domain.trainer = SimpleNamespace(max_epochs=1, world_size=world_size, lightning_module=module)
    if labels is not None:
        domain.labels = SimpleNamespace(training=lambda: labels, splits=domain.splits)
    return domain.origin(prepared=split == "unlabeled")


RELABELLED = [[Record("a.png", label), Record("b.png", 1)] for label in (0, 1)]


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({}, {"world_size": 2}, "images a step"),
        ({}, {"shots": 4}, "images"),
        ({"labels": RELABELLED[0]}, {"labels": RELABELLED[1]}, "labels"),
        ({}, {"augmentation": "none"}, "augmentation.class"),
        ({}, {"augmentation": LightAffine(degrees=1)}, "augmentation.degrees"),
        ({}, {"seed": 2}, "seed"),
        ({}, {"split": "unlabeled", "unlabeled_share": 0.5}, "images to distil on"),
    ],
)
def test_what_a_fit_is_made_from_names_images_labels_steps_and_views(before, now, name):
    options = {"split": now.get("split", "labeled")}
    assert difference(origin_of(**options, **before), origin_of(**options, **before)) is None
    changed = origin_of(**options | before | now)
    assert difference(origin_of(**options, **before), changed)[0] == name


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """The folder of a student's teacher and of its checkpoint after one step."""
    folder = tmp_path_factory.mktemp("distilled")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None)
    Distilled(folder, folder, trainer={"save": True, "limit_train_batches": 1})
    return folder


@pytest.mark.parametrize("changed", ["seed", "class vectors", "images"])
def test_a_student_is_not_resumed_with_an_input_that_is_another_or_was_not_recorded(
    changed, distilled, tmp_path
):
    teacher, data = shutil.copytree(distilled, tmp_path / "teacher"), {}
    if changed == "seed":
        data = {"seed": 2}
    elif changed == "class vectors":
        vectors = ClassVectors.load(teacher / CLASS_VECTORS_FILE)
        vectors.vectors.copy_(vectors.vectors.flip(0))
        vectors.save(teacher / CLASS_VECTORS_FILE)
    else:
        checkpoint = torch.load(teacher / "epoch=0.ckpt", weights_only=True)
        del checkpoint[ORIGIN_KEY]["images"]
        torch.save(checkpoint, teacher / "epoch=0.ckpt")
    with world.refused(ConfigError, rf"was made from something else \({changed} is "):
        Distilled(teacher, tmp_path, data=data, ckpt_path=teacher / "epoch=0.ckpt")


@pytest.mark.slow
def test_a_fit_resumes_with_the_same_images_on_another_number_of_processes(tmp_path):
    interrupted = tmp_path / "interrupted"
    with at_step(8, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        fit_teacher(interrupted, *STEPS)
    assert fit_teacher(tmp_path / "whole", *STEPS) == 0
    two = ["--trainer.devices=2", "--data.init_args.batch_size=8"]
    fit = ["fit", *DATA, *TEACHER, *SHORT, *STEPS, f"--out={interrupted}", *two]
    process = start_process(fit)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole, resumed = (load_file(run / PROMPTS_FILE) for run in (tmp_path / "whole", interrupted))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)

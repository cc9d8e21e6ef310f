"""Frozen weights stored in autocast's type, against autocast that casts them at every use."""

from collections import Counter

import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback
from test_teacher import make_teacher
from torch.utils._python_dispatch import TorchDispatchMode

from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, Frozen, load_clip
from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig
from kdpl.prompts.attributes import AttributePrompts
from kdpl.prompts.mmrl import RepresentationTokens
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER
from kdpl.teacher import RegularizerWeights

NONE, SIZE = PromptConfig(depth=0), PromptConfig(2, 2)
CROSS_ENTROPY = {"regularizers": RegularizerWeights(0, 0, 0)}
SAME_SIZES = {"vision_prompts": SIZE, "text_prompts": SIZE, **CROSS_ENTROPY}
TEACHERS = {
    "PromptSRC": {"classes_at_once": 2},
    "fixed text": {"text_prompts": NONE, **CROSS_ENTROPY},
    "coupled": {"method": "coupled", **SAME_SIZES},
    "attributes": {
        "method": lambda *common: AttributePrompts(*common, attributes=["color"]),
        **SAME_SIZES,
    },
    "representation": {
        "method": lambda *common: RepresentationTokens(*common, first_layer=2, width=8),
        **SAME_SIZES,
    },
}
STUDENTS = {
    "mean tokens": {"prompt_init": "mean_token"},
    "timm": {"model": "test-timm", "vision_prompts": NONE},
    "fine-tuned": {"fine_tune": True},
}
MODULES = [*(("teacher", name) for name in TEACHERS), *(("student", name) for name in STUDENTS)]


@pytest.fixture(autouse=True)
def few_templates(monkeypatch):
    monkeypatch.setattr("kdpl.teacher.PROMPTSRC_TEMPLATES", [lambda name: f"a {name}."])


def make(kind, name, folder):
    if kind == "teacher":
        return make_teacher(**TEACHERS[name])
    world.write_teacher(folder)
    return world.make_student(folder, **STUDENTS[name])


def domain_of(kind, name):
    return world.TinyDomain(num_base=3, batch_size=3, image_size=48 if name == "timm" else 32)


class Casts(TorchDispatchMode, Callback):
    """Counts the casts of tensors in the second step, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **(kwargs or {}))

    def on_train_batch_start(self, *args):
        if args[-1] == 1:
            self.__enter__()

    def on_train_batch_end(self, *args):
        if args[-1] == 1:
            self.__exit__(None, None, None)


def run(kind, name, folder):
    """Train for two steps with a validation after each, and test: all that comes out, and the casts in the steps."""
    folder.mkdir(exist_ok=True)
    module, casts, logits, watch = make(kind, name, folder), Casts(), [], Callback()
    watch.on_test_batch_end = lambda *args: logits.append(args[2]["logits"].tolist())
    options = {"precision": "bf16-mixed", "limit_train_batches": 2, "limit_val_batches": 2}
    domain = domain_of(kind, name)
    record = world.fit(module, folder, 1, [casts], domain, val_check_interval=1, **options)
    assert {gradient.dtype for gradient in record.gradients.values()} == {torch.float32}
    trainer = world.quiet_trainer(
        folder, precision="bf16-mixed", callbacks=[watch], limit_test_batches=2
    )
    tested = trainer.test(module, datamodule=domain, verbose=False)
    files = [folder / CLASS_VECTORS_FILE, *(folder / CLASSIFIER_FOLDER).glob("*")]
    return {
        "losses": record.losses,
        "logged": record.logged,
        "tested": tested,
        "logits": logits,
        "state": {key: value.tolist() for key, value in record.epochs[-1].items()},
        "files": {file.name: file.read_bytes() for file in files},
    }, casts.shapes


@pytest.mark.parametrize(("kind", "name"), MODULES)
def test_every_bit_is_equal_without_a_cast_of_a_frozen_weight(kind, name, tmp_path, monkeypatch):
    results, casts = run(kind, name, tmp_path / "stored")
    monkeypatch.setattr(Frozen, "store_in", lambda *_: None)
    expected, casts_by_autocast = run(kind, name, tmp_path / "cast")
    assert len(results["losses"]) == 2
    assert results == expected

    towers = [m.module for m in make(kind, name, tmp_path).modules() if isinstance(m, Frozen)]
    if kind == "student":
        towers.append(load_clip(ClipConfig("test-teacher-quickgelu", world.TAG)).image_tower)
    shapes = {tuple(p.shape) for tower in towers for p in tower.parameters()}
    assert sum(casts_by_autocast[shape] for shape in shapes) > 15
    assert not {shape: casts[shape] for shape in shapes if casts[shape]}


def size(tower):
    return sum(p.numel() * p.element_size() for p in tower.parameters())


def test_half_the_memory_is_for_the_weights_that_are_cast_and_float32_comes_back():
    whole, clip = (load_clip(ClipConfig("test-teacher", world.TAG)) for _ in range(2))
    kept = Frozen(clip.image_tower, keep=True)
    kept.store_in(torch.bfloat16)
    # the rest are layer norms
    assert 0.5 < size(clip.image_tower) / size(whole.image_tower) < 0.51
    with torch.inference_mode(), kept.exact() as tower:
        assert all(map(torch.equal, tower.parameters(), whole.image_tower.parameters()))
    assert clip.image_tower.visual.proj.dtype == torch.bfloat16
    kept.store_in(torch.float16)
    # rounded once
    assert torch.equal(clip.image_tower.visual.proj, whole.image_tower.visual.proj.half())
    kept.store_in(torch.float32)
    assert all(map(torch.equal, clip.image_tower.parameters(), whole.image_tower.parameters()))


def test_rounded_weights_are_not_taken_for_others(tmp_path):
    teacher = make_teacher(**CROSS_ENTROPY)
    options = {"limit_train_batches": 1}
    for _ in range(2):
        world.fit(teacher, tmp_path, precision="bf16-mixed", **options)
    with world.refused(ConfigError, r"rounded to torch\.bfloat16 .*: build the module again"):
        world.fit(teacher, tmp_path, **options)
    # a student's own tower is what ships
    (tmp_path / "teacher").mkdir()
    student = make("student", "mean tokens", tmp_path / "teacher")
    world.fit(student, tmp_path, precision="bf16-mixed", **options)
    classifier, domain = student.classifier(), domain_of("student", "")
    trainer = world.quiet_trainer(tmp_path, precision="bf16-mixed")
    trainer.test(student, datamodule=domain, verbose=False)
    assert student.encoder.tower.module.visual.proj.dtype == torch.bfloat16
    classifier.save(tmp_path / "c")
    for shipped in (Classifier.load(tmp_path / "c"), student.classifier()):
        world.assert_untouched(shipped.encoder.tower.module.visual, "test-student", "visual.")

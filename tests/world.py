"""A small world for tests: random CLIPs with sizes that cannot be mixed up, and a domain of a few images."""

from collections import Counter
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import open_clip
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig, load_clip, register_model
from kdpl.data.batches import EvaluationBatch, LabeledBatch, UnlabeledBatch, collate
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.names import Names
from kdpl.data.needs import Needs
from kdpl.data.pool import UnlabeledPool
from kdpl.data.readers.digits import Digits, read_digits
from kdpl.losses import DistillationLoss
from kdpl.prompts import PromptConfig, StudentPrompts
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.student import StudentDistillation
from kdpl.targets import PreparedTarget, TargetValues

TAG = "noise"
"""The pretrained tag of every model here."""


def _config(embed_dim, vision, text):
    """A config in open_clip's form; width, layers, and patch and head size of one tower, or heads of the other."""
    vision = dict(zip(("width", "layers", "patch_size", "head_width"), vision, strict=True))
    text = dict(zip(("width", "layers", "heads"), text, strict=True))
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": 32, **vision},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, **text},
    }


_TEACHER = _config(24, vision=(48, 3, 8, 16), text=(40, 4, 5))
_STUDENT = _config(20, vision=(32, 4, 16, 8), text=(8, 1, 1))
_LARGE = _config(28, vision=(40, 2, 16, 8), text=(24, 1, 2))
_RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 8}
_TIMM = {
    "image_size": 48,
    "timm_model_name": "test_convnext",
    "timm_proj": "linear",
    "timm_pool": "avg",
}

CONFIGS = {
    "test-resnet": {**_STUDENT, "vision_cfg": _RESNET},
    # a text tower of another kind than CLIP's beside it, as in MobileCLIP
    "test-timm": {
        **_STUDENT,
        "vision_cfg": _TIMM,
        "text_cfg": {**_STUDENT["text_cfg"], "no_causal_mask": True},
        "custom_text": True,
    },
    "test-teacher": _TEACHER,
    "test-teacher-quickgelu": {**_TEACHER, "quick_gelu": True},
    "test-student": _STUDENT,
    "test-student-quickgelu": {**_STUDENT, "quick_gelu": True},
    "test-large": {**_LARGE, "vision_cfg": {**_LARGE["vision_cfg"], "image_size": 48}},
    # as many layers as the published settings prompt
    "test-deep": _config(16, vision=(16, 9, 16, 8), text=(16, 9, 2)),
}
"""Model configs by name."""

CLIPS = ("test-teacher", "test-teacher-quickgelu", "test-student", "test-student-quickgelu")
"""Those whose both towers are transformers of CLIP's kind."""

_LOGIT_SCALES = {
    "test-teacher": 30.0,
    "test-student": 17.0,
    "test-resnet": 19.0,
    "test-timm": 23.0,
    "test-deep": 21.0,
    "test-large": 13.0,
}
_NORMS = "ln_", "bn", "norm", "downsample.1"


@cache
def weights(name):
    """The state dict of a model: every parameter is random, none at a value that hides a mistake."""
    plain_name = name.removesuffix("-quickgelu")
    draw = torch.Generator().manual_seed(sum(plain_name.encode()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {**CONFIGS[name]}
        kind = open_clip.CustomTextCLIP if config.pop("custom_text", None) else open_clip.CLIP
        state = kind(**config).state_dict()
    for key, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=draw)
        if key == "logit_scale":
            state[key] = torch.tensor(_LOGIT_SCALES[plain_name]).log()
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * noise.abs()
        elif key.endswith("num_batches_tracked"):
            pass
        elif key.endswith("weight") and any(norm in key for norm in _NORMS):
            state[key] = 1 + 0.2 * noise
        elif tensor.ndim < 2 or "positional" in key:
            state[key] = 0.2 * noise
        elif key == "token_embedding.weight":
            state[key] = 0.5 * noise
        else:
            state[key] = noise / tensor[0].numel() ** 0.5
    return state


def register():
    for name, config in CONFIGS.items():
        register_model(name, config, {TAG: lambda name=name: weights(name)})


@cache
def clip_of(name):
    """A frozen Clip by the name of its model; the same object for all tests, which do not change it."""
    return load_clip(ClipConfig(name, TAG))


NAMES = ("sea_horse", "crab", "blue whale", "squid", "star_fish")


def images_of(labels, seed, size=32):
    """One image per label, uint8 [N, 3, size, size]: a pattern of the class and noise."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.rand(len(NAMES), 3, 4, 4, generator=torch.Generator().manual_seed(7))
    patterns = patterns.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    noise = torch.rand(len(labels), 3, size, size, generator=draw)
    return ((0.7 * patterns[labels % len(NAMES)] + 0.3 * noise) * 255).to(torch.uint8)


class KeptTarget(PreparedTarget):
    """A prepared target whose ``gather`` returns its values, kept in a file."""

    file = "kept.pt"

    def settings(self, inputs):
        return {}

    def compute(self, gathered, made_from):
        def save(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save((vars(gathered), made_from), path)

        return SimpleNamespace(save=save)

    def load(self, path):
        values, made_from = torch.load(path, weights_only=True)
        return TargetValues(**values), made_from


class TinyDomain(DomainDataModule):
    """A domain in memory, in a fixed order without augmentation, so that a plain loop can see the same batches."""

    # what is read from files otherwise
    class_names = class_texts = num_base = tuning_class_names = None
    splits, decoding = SimpleNamespace(train=(), unlabeled=(), test=("one",)), Decoding()

    def __init__(self, num_base=None, batch_size=4, names=NAMES, image_size=32):
        super().__init__("digits", batch_size=batch_size)
        self.class_names = self.class_texts = names
        self.num_base = num_base
        self.tuning_class_names = names[:num_base]
        self.labels = torch.arange(12) % len(self.tuning_class_names)
        self.labeled = images_of(self.labels, seed=1, size=image_size)
        self.shown = torch.arange(12) % len(NAMES)
        self.unlabeled = images_of(self.shown, seed=2, size=image_size)
        self.pool = UnlabeledPool.share(Names.of(map(str, range(12))), 1.0, seed=1)
        self.test_labels = torch.arange(11) % len(names)
        self.test_images = images_of(self.test_labels, seed=3, size=image_size)
        self.resizing = Resizing(image_size)

    def prepare_data(self):
        """Nothing is read."""

    def setup(self, stage):
        """Nothing is read."""

    def origin(self, prepared):
        return {}

    def bounding_images(self):
        return torch.arange(len(self.test_labels)), False

    def preview(self, n, resizing):
        assert resizing == self.resizing
        return self.unlabeled[:n]

    def _loader(self, kind, *columns):
        items = [kind(*fields) for fields in zip(*columns, strict=True)]
        return DataLoader(items, self.batch_size, collate_fn=collate)

    def for_teacher(self):
        needs = self.trainer.lightning_module.needs
        if needs.teacher in (None, needs.resizing):
            return [None] * len(self.shown)
        return images_of(self.shown, seed=2, size=needs.teacher.image_size)

    def train_dataloader(self):
        if self.trainer.lightning_module.needs.split == "labeled":
            return self._loader(LabeledBatch, self.labeled, self.labels)
        return self._loader(
            UnlabeledBatch,
            self.unlabeled,
            torch.arange(len(self.unlabeled)),
            [None] * len(self.unlabeled),
            self.for_teacher(),
        )

    def val_dataloader(self):
        return self._loader(
            EvaluationBatch, self.test_images, self.test_labels, torch.arange(len(self.test_labels))
        )

    test_dataloader = val_dataloader


def quiet_trainer(folder, max_epochs=1, **options):
    """A trainer on the CPU that prints and logs nothing and writes into ``folder``."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    none = dict.fromkeys(("num_sanity_val_steps", "limit_val_batches"), 0)
    settings = {"accelerator": "cpu", "devices": 1, **dict.fromkeys(off, False), **none}
    return Trainer(max_epochs=max_epochs, default_root_dir=folder, **{**settings, **options})


def tuned_prompts(tensors, model="test-teacher-quickgelu", context="a photo of a", **changes):
    """These prompts as those of a teacher with independent prompts."""
    clip = clip_of(model)
    tokens, deep = tensors.get("vision_prompts.tokens"), tensors.get("text_prompts.deep")
    none = PromptConfig(depth=0)
    context_length = len(tensors.get("text_prompts.context", ()))
    fields = {
        "method": "independent",
        "vision": none if tokens is None else PromptConfig(tokens.shape[1], tokens.shape[0]),
        "text": none if deep is None else PromptConfig(context_length, 1 + len(deep)),
        "context": context,
        "clip": clip.identity,
        "text_fingerprint": clip.text_fingerprint,
        "logit_scale": clip.logit_scale,
        "preprocessing": clip.preprocessing,
    }
    return TunedPrompts(tensors=tensors, **{**fields, **changes})


def frozen_vectors(model="test-teacher-quickgelu", prompts=None, seed=0, **changes):
    """Class vectors that nothing was tuned for: random directions, tied to a model and to prompts."""
    clip = clip_of(model)
    draw = torch.Generator().manual_seed(seed)
    size = len(changes.get("class_names", NAMES)), clip.image_tower.embed_dim
    vectors = torch.randn(size, generator=draw)
    fields = {
        "vectors": torch.nn.functional.normalize(vectors, dim=-1),
        "class_names": NAMES,
        "num_base": 3,
        "clip": clip.identity,
        "logit_scale": clip.logit_scale,
        "context": "a photo of a",
        "preprocessing": clip.preprocessing,
        "teacher": tuned_prompts(prompts or {}, model).teacher,
    }
    return ClassVectors(**{**fields, **changes})


def write_teacher(folder, model="test-teacher-quickgelu", depth=2, seed=0, **changes):
    """Write what stage 1 leaves in a run folder, with random prompts; returns the class vectors and visual prompts."""
    draw = torch.Generator().manual_seed(seed)
    width = CONFIGS[model]["vision_cfg"].get("width")  # a network of timm has none, nor prompts
    prompts = {}
    if depth:
        prompts["vision_prompts.tokens"] = torch.randn(depth, 3, width, generator=draw)
    vectors = frozen_vectors(model, prompts, seed, **changes)
    tuned_prompts(prompts, model).save(folder / PROMPTS_FILE)
    vectors.save(folder / CLASS_VECTORS_FILE)
    return vectors, prompts.get("vision_prompts.tokens")


@contextmanager
def refused(kind, match):
    """Expect an error whose message is one sentence on one line that says what to do."""
    with pytest.raises(kind, match=match) as error:
        yield error
    text = str(error.value)
    assert "\n" not in text, text
    assert len(text) > 30, text
    assert ": " in text, text
    assert "Traceback" not in text, text


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(batch_size, **options):
    settings = {
        "augmentation": "light_affine",
        "num_workers": 0,
        "eval_batch_size": 40,
        "shots": None,
        "val_shots": None,
    }
    return DomainDataModule("digits", batch_size=batch_size, **{**settings, **options})


def group_digits(monkeypatch, size=3):
    """Put the images of the digits into groups, of so many of a split and class."""
    splits, groups = read_digits(), {}
    for name in ("train", "val", "test"):
        counts = Counter()
        for source, label in getattr(splits, name):
            groups[source] = f"{name} {label} {counts[label] // size}"
            counts[label] += 1
    monkeypatch.setattr(Digits, "read", lambda _: replace(splits, groups=groups))
    return groups


def make_student(
    folder,
    model="test-student",
    kind=StudentDistillation,
    vision_prompts=PromptConfig(2, 3),
    prompt_init="normal",
    kd_weight=1000.0,
    temperature=1.0,
    distill="kl",
    **options,
):
    """A student of the teacher in a folder, the same each time."""
    torch.manual_seed(0)
    prompts = StudentPrompts(vision_prompts.length, vision_prompts.depth, prompt_init)
    loss = DistillationLoss(kd_weight, temperature, distill)
    clip = options.pop("clip", ClipConfig(model, TAG))
    return kind(clip=clip, teacher=str(folder), vision_prompts=prompts, loss=loss, **options)


_RESIZING = Resizing(32)


class Probe(LightningModule):
    """Learns nothing and keeps the batches that it is given."""

    def __init__(self, train_split="labeled", resizing=_RESIZING):
        super().__init__()
        self.needs = Needs(train_split, resizing)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs, self.train_batches, self.val_batches = [], [], []

    def setup(self, stage):
        self.names_at_setup = self.trainer.datamodule.class_names

    def training_step(self, batch):
        self.epochs.append(self.current_epoch)
        self.train_batches.append(batch)
        return self.weight.sum()

    def validation_step(self, batch):
        self.val_batches.append(batch)

    def test_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Record(Callback):
    """Keeps each step's batch and loss, the last gradients, and the module's state after each epoch's last step.

    ``started`` is what ``start`` returns, which is called with the module before the first step.
    """

    def __init__(self, start=None):
        self.start, self.batches, self.losses, self.epochs = start, [], [], []

    def on_train_start(self, _, pl_module):
        self.started = self.start(pl_module) if self.start else None

    def on_train_batch_start(self, _, __, batch, ___):
        self.batches.append(batch)

    def on_after_backward(self, _, pl_module):
        self.gradients = {
            k: p.grad.clone() for k, p in pl_module.named_parameters() if p.grad is not None
        }

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(outputs["loss"].item())
        state = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}
        self.epochs = [*self.epochs[: trainer.current_epoch], state]


def fit(
    module,
    folder,
    epochs=1,
    callbacks=(),
    domain=None,
    ckpt_path=None,
    start=None,
    save=False,
    **options,
):
    """Fit a module, and ``save`` epoch=N.ckpt of each epoch; returns its ``Record``, which also has what was logged."""
    record = Record(start)
    saving = [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)] if save else []
    options = {"callbacks": [record, *callbacks, *saving], "enable_checkpointing": save, **options}
    trainer = quiet_trainer(folder, epochs, **options)
    trainer.fit(
        module, datamodule=domain or TinyDomain(num_base=3), ckpt_path=ckpt_path, weights_only=True
    )
    record.logged = {k: v.item() for k, v in trainer.callback_metrics.items()}
    return record


class Distilled:
    """A student after two epochs of five steps on the digits, perhaps from a cache of two views."""

    def __init__(
        self,
        teacher,
        folder,
        cache=None,
        ckpt_path=None,
        trainer=(),
        data=(),
        **options,
    ):
        options = {"kd_weight": 20, "teacher_cache": cache and str(cache), **options}
        self.student = make_student(teacher, **options)
        settings = {"limit_train_batches": 5, **dict(trainer)}
        domain = digits(50, **dict(data))
        record = fit(self.student, folder, 2, (), domain, ckpt_path, **settings)
        self.batches, self.losses = record.batches, record.losses
        self.state = self.student.encoder.state_dict()


def evaluate(module, folder, domain=None, ckpt_path=None):
    """Test a module; returns its metrics."""
    options = {"ckpt_path": ckpt_path, "verbose": False, "weights_only": True}
    return quiet_trainer(folder).test(
        module, datamodule=domain or TinyDomain(num_base=3), **options
    )[0]


def disturbed(module, by):
    """Move what a module trains away from its start, so that every part matters; returns the module."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn(parameter.shape, generator=draw)
    return module


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class NoStep(Callback):
    def on_train_batch_start(self, *_):
        raise AssertionError("training began")


def assert_untouched(tower, model, part=""):
    """Require a frozen tower to have the weights of its model, no gradients, and to be in evaluation mode."""
    state = tower.state_dict()
    assert state
    assert all(torch.equal(v, weights(model)[f"{part}{k}"]) for k, v in state.items())
    assert not [p for p in tower.parameters() if p.requires_grad or p.grad is not None]
    assert not [m for m in tower.modules() if m.training]


@torch.no_grad()
def exact_logits(model, images):
    """Logits computed in float64 and rounded to float32, the same beside any number of classes.

    In float32, products of matrices of other widths add in another order.
    """
    head = deepcopy(model.head)
    for name, buffer in model.head.named_buffers():
        setattr(head, name, buffer.double())
    return head(model.encoder(images).double(), model.logit_scale).float()

"""Networks of timm as students, trained as a whole."""

import json

import pytest
import timm
import torch
import world
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from PIL import Image
from plain import relative_error
from runs import noise
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import pil_to_tensor

from kdpl import Classifier, StudentDistillation
from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.timm_networks import TimmTower, preprocessing_of
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.errors import ConfigError, WeightsError
from kdpl.optim import OptimConfig, step_factor
from kdpl.prompts import StudentPrompts

RESNET = ClipConfig("timm:test_resnet", "random", image_size=32)


@pytest.fixture(scope="module")
def images():
    return world.images_of(torch.tensor([0, 1, 2]), seed=1)


@pytest.mark.filterwarnings("ignore:.*random weights")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", 32),
        ("test_efficientnet", 48),
        ("test_vit", 32),
        ("test_convnext.r160_in1k", 64),
    ],
)
def test_features_are_those_of_timm_before_its_classifier(name, size, tmp_path):
    plain = timm.create_model(
        name, pretrained=False, **({"img_size": size} if "vit" in name else {})
    ).eval()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    config = ClipConfig(f"timm:{name}", str(tmp_path / "w.safetensors"), image_size=size)
    tower = load_image_clip(config).image_tower.eval()
    about = tower.preprocessing
    pictures = world.images_of(torch.tensor([0, 1, 2]), seed=1, size=size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (about.mean, about.std))
    with torch.no_grad():
        expected = plain.forward_head(
            plain.forward_features((pictures / 255 - mean) / std), pre_logits=True
        )
        assert relative_error(tower(pictures), expected) < 1e-6
    assert tower.embed_dim == expected.shape[1]
    assert (about.image_size, list(about.mean)) == (size, list(plain.pretrained_cfg["mean"]))


def test_it_cannot_be_a_teacher():
    match = "timm:resnet18 is not a CLIP and cannot read class names: use it as a student"
    with world.refused(WeightsError, match):
        load_clip(ClipConfig("timm:resnet18", "random"))


def test_random_weights_are_the_same_each_time():
    first, second = (load_image_clip(RESNET) for _ in range(2))
    assert first.identity == second.identity
    assert first.logit_scale is None


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            ClipConfig("timm:mobilnetv4", "random"),
            "timm has no model called 'mobilnetv4': use .* such as mobilenetv",
        ),
        (
            ClipConfig("timm:resnet18"),
            r"cannot fetch timm's weights of resnet18 \(.*\): fetch .* or set it to random",
        ),
        (
            ClipConfig("timm:resnet18", "none.pt"),
            "weights file none.pt does not exist: give a file, random, or nothing",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said(config, match):
    with world.refused(WeightsError, match):
        load_image_clip(config)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    match = r"w\.safetensors does not hold the weights of timm:test_resnet \(tensor '.*' is missing, tensor '.*' is unk"
    with world.refused(WeightsError, match):
        load_image_clip(ClipConfig("timm:test_resnet", str(tmp_path / "w.safetensors")))


def make(folder, **options):
    """A student on a network of timm, the same each time."""
    world.write_teacher(folder)
    torch.manual_seed(0)
    settings = {
        "vision_prompts": StudentPrompts(depth=0),
        "optim": OptimConfig("adamw", 0.01, warmup_steps=2),
        **options,
    }
    return StudentDistillation(RESNET, str(folder), **settings)


def test_it_is_trained_as_a_whole_and_its_classifier_gives_the_same_logits(tmp_path, images):
    student = make(tmp_path)
    tower = student.encoder.tower.module
    assert isinstance(tower, TimmTower)
    before = {name: tensor.clone() for name, tensor in tower.visual.state_dict().items()}
    world.quiet_trainer(tmp_path, 2).fit(student, datamodule=world.TinyDomain(num_base=3))
    after = tower.visual.state_dict()
    assert not [
        name for name in before if "tracked" not in name and torch.equal(before[name], after[name])
    ]
    assert student.logit_scale == student.shared_vectors.logit_scale
    expected = student.eval().class_logits(images)
    loaded = Classifier.load(tmp_path / "classifier")
    assert relative_error(loaded(images), expected) < 1e-6
    loaded.save(tmp_path / "again")
    assert torch.equal(Classifier.load(tmp_path / "again")(images), loaded(images))


def test_a_classifier_crops_as_timm_does_and_one_written_before_does_not(tmp_path):
    world.quiet_trainer(tmp_path, 1).fit(make(tmp_path), datamodule=world.TinyDomain(num_base=3))
    file = tmp_path / "classifier/classifier.json"
    fields = json.loads(file.read_text())
    assert fields["preprocessing"]["crop_pct"] == 0.95
    assert "crop_pct" not in fields["class_vectors"]["preprocessing"], "that of a CLIP"
    # 32 pixels of 33
    picture = noise(66, 80)
    middle = picture.resize((33, 40), Image.Resampling.BILINEAR).crop((0, 4, 32, 36))
    assert torch.equal(Classifier.load(file.parent).prepare(picture), pil_to_tensor(middle))
    del fields["preprocessing"]["crop_pct"]
    file.write_text(json.dumps(fields))
    short = picture.resize((32, 38), Image.Resampling.BILINEAR).crop((0, 3, 32, 35))
    before = Classifier.load(file.parent)
    assert torch.equal(before.prepare(picture), pil_to_tensor(short))
    before.save(tmp_path / "again")
    assert "crop_pct" not in (tmp_path / "again/classifier.json").read_text()


def test_it_may_stay_frozen_under_the_projector(tmp_path):
    student = make(tmp_path, fine_tune=False)
    before = {
        name: tensor.clone()
        for name, tensor in student.encoder.tower.module.visual.state_dict().items()
    }
    world.quiet_trainer(tmp_path, 1).fit(student, datamodule=world.TinyDomain(num_base=3))
    after = student.encoder.tower.module.visual.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_takes_no_prompts(tmp_path):
    with world.refused(
        ConfigError, r"of kind ResNet has no tokens .*: set vision_prompts\.depth to 0"
    ):
        make(tmp_path, vision_prompts=StudentPrompts(2, 2))


class Averages(EMAWeightAveraging):
    """Computes the average of one weight once more, by hand."""

    def __init__(self):
        super().__init__(decay=0.5)
        self.mean = None

    def on_train_batch_end(self, trainer, pl_module, *rest):
        super().on_train_batch_end(trainer, pl_module, *rest)
        now = pl_module.encoder.projector.layers[0].weight.detach().clone()
        self.mean = now if self.mean is None else 0.5 * self.mean + 0.5 * now


def test_lightnings_moving_average_of_the_weights_is_what_ships(tmp_path):
    averages = Averages()
    world.quiet_trainer(tmp_path, 2, callbacks=[averages]).fit(
        make(tmp_path), datamodule=world.TinyDomain(num_base=3)
    )
    shipped = Classifier.load(tmp_path / "classifier").encoder.projector.layers[0].weight
    assert relative_error(shipped, averages.mean) < 1e-5


def test_the_rate_rises_and_falls_by_steps_and_vectors_do_not_decay(tmp_path):
    student = make(
        tmp_path,
        optim=OptimConfig("adamw", 0.01, weight_decay=0.1, warmup_steps=2, decay_vectors=False),
    )
    rates, groups = [], []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            groups[:] = trainer.optimizers[0].param_groups
            rates.append([group["lr"] for group in groups])

    trainer = world.quiet_trainer(tmp_path, 2, callbacks=[Rates()])
    trainer.fit(student, datamodule=world.TinyDomain(num_base=3))
    # by hand: 2 epochs of 3 batches, of which 2 steps warm up; then ½ (1 + cos(π s / 4)) for s = 0, 1, 2, 3
    expected = [0.005, 0.01, 0.01, 0.0085355, 0.005, 0.0014645]
    assert rates == [pytest.approx([rate] * 2, rel=1e-4) for rate in expected]
    assert [step_factor(step, 6, 2) * 0.01 for step in range(6)] == pytest.approx(
        expected, rel=1e-4
    )
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [{p.ndim > 1 for p in group["params"]} for group in groups] == [{True}, {False}]
    assert sum(len(group["params"]) for group in groups) == len(
        [p for p in student.parameters() if p.requires_grad]
    )


@pytest.mark.parametrize(
    ("name", "size", "crop_pct"),
    [
        ("resnet18", 224, 0.95),
        ("mobilenetv4_conv_small", 224, 0.875),
        ("mobilenetv4_conv_small", 256, 0.95),  # the size of timm's test
        ("mobilenetv4_conv_small", 32, 0.875),
        ("tf_efficientnetv2_b3", 240, 0.9),
        ("deepseek_vit_412m", 546, 1.0),
        ("vit_base_patch16_clip_384", 384, 1.0),
        ("test_resnet", 160, 0.95),
    ],
)
def test_images_are_prepared_as_timm_evaluates_a_network(name, size, crop_pct):
    about = timm.get_pretrained_cfg(name)
    if about is None:
        pytest.skip(f"timm {timm.__version__} is too old for {name}")
    own = resolve_data_config(pretrained_cfg=about.to_dict(), use_test_size=size == 256)
    prepare = create_transform(**{**own, "input_size": (3, size, size)}, use_prefetcher=True)
    images = preprocessing_of(name, size)
    assert (images.crop_pct, images.mean, images.std) == (crop_pct, about.mean, about.std)
    for number, shape in enumerate([(640, 480), (300, 511), (97, 41)]):
        picture = noise(*shape, seed=number)
        made = to_tensor(resize_and_crop(picture, images.resizing))
        assert torch.equal(made, prepare(picture)), shape

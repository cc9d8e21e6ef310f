"""Networks of timm as students, trained as a whole."""

import json

import pytest
import timm
import torch
import world
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from plain import relative_error, standardized
from runs import noise
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import pil_to_tensor

from kdpl import Classifier, StudentDistillation
from kdpl.clip import ClipConfig, load_clip, load_image_clip
from kdpl.clip.timm_networks import TimmTower, preprocessing_of
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.errors import WeightsError
from kdpl.optim import OptimConfig
from kdpl.prompts import StudentPrompts

RESNET = ClipConfig("timm:test_resnet", "random", image_size=32)


@pytest.mark.filterwarnings("ignore:.*random weights")
@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 32), ("test_efficientnet", 48), ("test_vit", 32), ("test_convnext", 64)],
)
def test_features_are_those_of_timm_before_its_classifier(name, size, tmp_path):
    options = {"img_size": size} if "vit" in name else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False, **options).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    config = ClipConfig(f"timm:{name}", str(tmp_path / "w.safetensors"), image_size=size)
    tower = load_image_clip(config).image_tower.eval()
    pictures = world.images_of(torch.arange(3), seed=1, size=size)
    # In double precision, as some random weights amplify the rounding of the pixels.
    network, tower = network.double(), tower.double()
    with torch.no_grad():
        states = network.forward_features(standardized(pictures.double(), tower.preprocessing))
        expected = network.forward_head(states, pre_logits=True)
        assert relative_error(tower(pictures), expected) < 1e-6
    assert tower.embed_dim == expected.shape[1]
    assert tower.preprocessing.image_size == size


def test_it_cannot_be_a_teacher():
    with world.refused(WeightsError, "timm:resnet18 is not a CLIP"):
        load_clip(ClipConfig("timm:resnet18", "random"))


@pytest.mark.parametrize(
    ("name", "pretrained", "match"),
    [
        ("mobilenetv4", "random", "no model called 'mobilenetv4': use .* mobilenetv"),
        ("test_resnet", None, r"cannot fetch timm's weights of test_resnet"),
        ("test_resnet", "none.pt", r"file none\.pt does not exist"),
        ("test_resnet", "w.safetensors", "does not hold the weights of timm:test_resnet"),
    ],
)
def test_what_cannot_be_loaded_is_refused(name, pretrained, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"another": torch.ones(1)}, tmp_path / "w.safetensors")
    with world.refused(WeightsError, match):
        load_image_clip(ClipConfig(f"timm:{name}", pretrained))


def make(folder):
    """A student on a network of timm, the same each time."""
    world.write_teacher(folder)
    torch.manual_seed(0)
    none, optim = StudentPrompts(depth=0), OptimConfig("adamw", 0.01, warmup_steps=2)
    return StudentDistillation(RESNET, str(folder), vision_prompts=none, optim=optim)


def fit(student, folder, **options):
    """Fit a student for an epoch; returns the weights of its tower before and after."""
    visual = student.encoder.tower.module.visual
    before = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    trainer = world.quiet_trainer(folder, **options)
    trainer.fit(student, datamodule=world.TinyDomain(num_base=3))
    return before, visual.state_dict()


def test_it_is_trained_as_a_whole_and_its_classifier_gives_the_same_logits(tmp_path, images):
    student = make(tmp_path)
    assert isinstance(student.encoder.tower.module, TimmTower)
    before, after = fit(student, tmp_path)
    trained = [name for name in before if "tracked" not in name]
    assert not [name for name in trained if torch.equal(before[name], after[name])]
    assert student.logit_scale == student.vectors.logit_scale
    expected = student.eval().class_logits(images)
    read = Classifier.load(tmp_path / "classifier")
    assert relative_error(read(images), expected) < 1e-6
    read.save(tmp_path / "again")
    assert torch.equal(Classifier.load(tmp_path / "again")(images), read(images))

    # it crops as timm does: 32 pixels of 33
    fields = json.loads((tmp_path / "classifier/classifier.json").read_text())
    assert fields["preprocessing"]["crop_pct"] == 0.95
    assert "crop_pct" not in fields["class_vectors"]["preprocessing"], "that of a CLIP"
    picture = noise(66, 80)
    middle = picture.resize((33, 40), Image.Resampling.BILINEAR).crop((0, 4, 32, 36))
    assert torch.equal(read.prepare(picture), pil_to_tensor(middle))


@pytest.mark.parametrize(
    ("name", "size", "crop_pct"),
    [
        ("resnet18", 224, 0.95),
        ("mobilenetv4_conv_small", 224, 0.875),
        ("mobilenetv4_conv_small", 256, 0.95),  # the size of timm's test
        ("vit_base_patch16_clip_384", 384, 1.0),
    ],
)
def test_images_are_prepared_as_timm_evaluates_a_network(name, size, crop_pct):
    about = timm.get_pretrained_cfg(name)
    if about is None:
        pytest.skip(f"timm {timm.__version__} is too old for {name}")
    data = resolve_data_config(pretrained_cfg=about.to_dict(), use_test_size=size == 256)
    prepare = create_transform(**{**data, "input_size": (3, size, size)}, use_prefetcher=True)
    images = preprocessing_of(name, size)
    assert (images.crop_pct, images.mean, images.std) == (crop_pct, about.mean, about.std)
    for number, shape in enumerate([(640, 480), (300, 511), (97, 41)]):
        picture = noise(*shape, seed=number)
        made = to_tensor(resize_and_crop(picture, images.resizing))
        assert torch.equal(made, prepare(picture)), shape


def test_lightnings_moving_average_of_the_weights_is_what_ships(tmp_path):
    weights, watch = [], Callback()
    watch.on_train_batch_end = lambda _, module, *__: weights.append(
        module.encoder.projector.layers[0].weight.detach().clone()
    )
    fit(make(tmp_path), tmp_path, callbacks=[EMAWeightAveraging(decay=0.5), watch])
    mean = weights[0]
    for weight in weights[1:]:
        mean = 0.5 * mean + 0.5 * weight
    shipped = Classifier.load(tmp_path / "classifier").encoder.projector.layers[0].weight
    assert relative_error(shipped, mean) < 1e-5

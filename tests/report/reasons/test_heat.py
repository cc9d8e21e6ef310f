"""Heat maps: the same as a plain implementation, on every kind of network, and nothing else changes."""

import math

import numpy as np
import pytest
import torch
import world
from runs import noise
from scipy.ndimage import gaussian_filter

from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, load_clip
from kdpl.clip.timm_networks import load_image_clip
from kdpl.data.augmentation import open_given
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.report.reasons import heat_map, pictures
from kdpl.report.reasons.heat import GRID, MASKS, cell_importance, log_odds, random_masks
from kdpl.report.reasons.pictures import overlay

KINDS = ("prompted", "whole", "test-resnet", "test-timm", "timm:test_resnet")


def make(kind):
    """A classifier with random weights: a prompted vision transformer, one without prompts, ResNets."""
    vectors = world.frozen_vectors()
    if kind.startswith("timm:"):
        clip = ClipConfig(kind, "random", image_size=48)
        tower, identity = load_image_clip(clip).image_tower, world.clip_of("test-student").identity
    else:
        name = kind if kind.startswith("test-") else "test-student"
        loaded = load_clip(ClipConfig(name, world.TAG))
        tower, identity = loaded.image_tower, loaded.identity
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = StudentEncoder(tower, 2, 3 if kind == "prompted" else 0, vectors.vectors.shape[1])
    return Classifier(world.disturbed(encoder, 0.2), vectors, 17.0, identity)


@pytest.fixture(scope="module", params=KINDS)
def classifier_of_kind(request):
    return make(request.param)


@pytest.fixture(scope="module")
def prompted():
    return make("prompted")


def photo(classifier, seed=0):
    edge = classifier.preprocessing.image_size
    return world.images_of(torch.tensor([1]), seed=seed, size=edge)[0]


def plain_blur(pixels):
    """A Gaussian of an eighth of the edge, with reflected borders, of three deviations."""
    edge = pixels.shape[-1]
    how = {"mode": "mirror", "radius": round(3 * edge / 8), "axes": (1, 2)}
    return gaussian_filter(pixels, edge / 8, **how)


def plain_weights(edge):
    """The bilinear weights [edge, G] of cells for pixels: hat functions, constant beyond the outer cells' centres."""
    weights = np.zeros((edge, GRID))
    for pixel in range(edge):
        place = min(max((pixel + 0.5) * GRID / edge - 0.5, 0), GRID - 1)
        low = min(math.floor(place), GRID - 2)
        weights[pixel, low], weights[pixel, low + 1] = 1 - (place - low), place - low
    return weights


def plain_evidence(classifier, image, label):
    """One mask at a time; the chain rule from pixels to cells by hand."""
    sharp = image.numpy().astype(np.float64) / 255
    blurred = plain_blur(sharp)
    up = plain_weights(sharp.shape[-1])
    total = np.zeros((GRID, GRID))
    for mask in random_masks().numpy()[:, 0]:
        mixed = blurred + (up @ mask @ up.T) * (sharp - blurred)
        pixels = torch.tensor(mixed[None], dtype=torch.float32, requires_grad=True)
        p = torch.softmax(classifier(pixels)[0].double(), dim=0)[label]
        torch.log(p / (1 - p)).backward()
        total += up.T @ (pixels.grad[0].double().numpy() * (sharp - blurred)).sum(axis=0) @ up
    for parameter in classifier.parameters():
        parameter.grad = None
    return total / MASKS


def test_maps_are_those_of_a_plain_implementation(classifier_of_kind):
    classifier, image = classifier_of_kind, photo(classifier_of_kind)
    prepared = classifier.prepare(open_given(image, classifier.decoding))
    up = plain_weights(image.shape[-1])
    for label in (0, 3):
        expected = plain_evidence(classifier, image, label)
        allowed = 2e-4 * np.abs(expected).max()
        importance = cell_importance(classifier, image, label)
        np.testing.assert_allclose(importance, expected, rtol=1e-3, atol=allowed)
        enlarged = up @ cell_importance(classifier, prepared, label).numpy().clip(0) @ up.T
        shown = heat_map(classifier, image, classifier.class_names[label])
        np.testing.assert_allclose(shown, enlarged / enlarged.max(), atol=1e-4)


def test_the_masks_keep_every_share_and_come_in_pairs_that_make_a_whole():
    masks = random_masks()
    assert masks.shape == (MASKS, 1, GRID, GRID)
    assert masks.unique().tolist() == [0, 1]
    assert (masks[: MASKS // 2] + masks[MASKS // 2 :] == 1).all()
    shares = masks.mean(dim=(1, 2, 3)).sort().values
    torch.testing.assert_close(shares, (torch.arange(MASKS) + 0.5) / MASKS, rtol=0, atol=0.08)


def test_maps_of_several_images_are_those_of_each(classifier_of_kind):
    edge = classifier_of_kind.preprocessing.image_size
    wide = noise(90, 50)
    one = heat_map(classifier_of_kind, wide)
    assert (one.shape, one.dtype) == ((edge, edge), torch.float32)
    assert (float(one.min()), float(one.max())) == (0, pytest.approx(1))
    several = heat_map(classifier_of_kind, [photo(classifier_of_kind), wide])
    assert several.shape == (2, edge, edge)
    assert torch.equal(several[1], one)
    assert heat_map(classifier_of_kind, []).shape == (0, edge, edge)


def test_the_class_is_the_predicted_one_or_the_one_given(prompted):
    image = photo(prompted)
    ((top,),) = prompted.predict([image])
    maps = {name: heat_map(prompted, image, name) for name in prompted.class_names}
    assert torch.equal(heat_map(prompted, image), maps.pop(top.class_name))
    assert all(not torch.equal(heat_map(prompted, image), other) for other in maps.values())


def test_an_overlay_is_of_the_class_that_it_is_asked_for(prompted, monkeypatch):
    image, (second, first) = noise(48, 48), prompted.class_names[1::-1]
    drawn = np.asarray(overlay(prompted, image, second))
    shown = heat_map(prompted, image, second)
    monkeypatch.setattr(pictures, "heat_map", lambda *_: shown)
    assert (drawn == np.asarray(overlay(prompted, image))).all()
    monkeypatch.undo()
    assert (drawn != np.asarray(overlay(prompted, image, first))).any()


def test_weights_modes_and_gradients_stay_as_they_are(classifier_of_kind):
    classifier = classifier_of_kind
    parts = (classifier, classifier.encoder.tower.module)
    modules = [module for part in parts for module in part.modules()]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    tensors = [*parameters, *(buffer for part in parts for buffer in part.buffers())]

    def state():
        return (
            [(p.requires_grad, p.grad) for p in parameters],
            [m.training for m in modules],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        )

    values, before, image = [tensor.clone() for tensor in tensors], state(), photo(classifier)
    first = heat_map(classifier, image)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(heat_map(classifier, image), first)
    assert all(map(torch.equal, tensors, values))
    assert state() == before
    assert not first.requires_grad


def test_a_class_that_is_sure_still_has_a_map(prompted):
    sure = Classifier(prompted.encoder, prompted.vectors, 1e4, prompted.clip)
    assert float(sure.predict([photo(sure)])[0][0].probability) == 1
    assert float(heat_map(sure, photo(sure)).max()) == pytest.approx(1)


def test_with_several_labels_a_class_is_explained_by_itself(prompted):
    multilabel = pytest.importorskip("kdpl.multilabel.task")
    by_itself = Classifier(
        prompted.encoder, prompted.vectors, 17.0, prompted.clip, task=multilabel.MultiLabel()
    )
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        p = by_itself.task.probabilities(by_itself(images))[:, 2]
        odds = log_odds(by_itself, images, 2)
    torch.testing.assert_close(odds.sigmoid(), p, rtol=1e-5, atol=1e-6)
    name = by_itself.class_names[2]
    apart = heat_map(by_itself, photo(by_itself), name) - heat_map(prompted, photo(prompted), name)
    assert float(apart.abs().max()) > 0.01
    assert float(heat_map(by_itself, photo(by_itself)).max()) == pytest.approx(1)

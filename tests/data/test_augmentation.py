import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from runs import noise
from torchvision.transforms import v2

from kdpl.data.augmentation import (
    HalfWhole,
    LightAffine,
    RandomResizedCrop,
    build_augmentation,
    resize_and_crop,
    to_tensor,
)
from kdpl.errors import ConfigError
from kdpl.runtime.resizing import Resizing


def draws(augmentation, n, width, height):
    rng = np.random.default_rng(0)
    return np.array([augmentation.parameters(rng, width, height) for _ in range(n)])


def test_crop_distribution_is_torchvisions_and_half_of_the_crops_are_flipped():
    for width, height in ((400, 300), (120, 500)):
        torch.manual_seed(0)
        reference = v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC)
        image = torch.empty(3, height, width)
        theirs = np.array([list(reference.make_params([image]).values()) for _ in range(2000)])
        ours = draws(RandomResizedCrop(), 4000, width, height)
        assert ours[:, 4].mean() == pytest.approx(0.5, abs=0.03)
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            ours_there, theirs_there = (
                np.quantile(crops[:, :4], quantile, axis=0) for crops in (ours, theirs)
            )
            assert np.abs(ours_there - theirs_there).max() < 0.03 * max(width, height), quantile


def test_crops_reach_both_ends():
    top, left, height, width, _ = draws(RandomResizedCrop(), 500, 4, 4).T
    assert set(top[height == 3]) == {0, 1}
    assert set(left[width == 2]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(10, 1000, (493, 0, 13, 10)), (1000, 10, (0, 493, 10, 13)), (1, 1000, (499, 0, 1, 1))],
)
def test_where_no_crop_fits_the_largest_centre_is_taken(width, height, expected):
    # scale (1, 1) never fits such a strip within the ratios
    parameters = draws(RandomResizedCrop(scale=(1.0, 1.0)), 20, width, height)
    assert {tuple(row[:4]) for row in parameters.tolist()} == {expected}


@pytest.mark.parametrize("way", ["bicubic", "bilinear"])
def test_applied_crop_is_torchvisions_by_the_towers_interpolation_alone(way):
    image, crop, box = noise(50, 40), RandomResizedCrop(), (5, 7, 20, 30)
    how = {"interpolation": v2.InterpolationMode(way), "antialias": True}
    plain = v2.functional.resized_crop(image, *box, [24, 24], **how)
    for mode in ("squash", "shortest"):
        view = crop.apply(image, (*box, 0), Resizing(24, mode, way))
        assert view.tobytes() == plain.tobytes()
    flipped = to_tensor(crop.apply(image, (*box, 1), Resizing(24, "squash", way)))
    assert torch.equal(flipped, to_tensor(plain).flip(-1))


def test_light_affine_stays_within_its_bounds_and_reaches_them():
    parameters = draws(LightAffine(), 4000, 32, 32)
    low, high = np.array([-7, 0.9, -0.05, -0.05]), np.array([7, 1.1, 0.05, 0.05])
    assert (parameters >= low).all()
    assert (parameters <= high).all()
    assert parameters.min(axis=0) == pytest.approx(low, rel=0.01)
    assert parameters.max(axis=0) == pytest.approx(high, rel=0.01)
    assert parameters.mean(axis=0) == pytest.approx([0, 1, 0, 0], abs=0.2)


def test_light_affine_shifts_magnifies_and_turns_about_the_centre():
    def applied(image, *parameters, to=Resizing(40)):  # noqa: B008
        return to_tensor(LightAffine().apply(image, parameters, to))

    image = noise(50, 40)
    for mode in ("shortest", "squash"):
        still = to_tensor(resize_and_crop(image, Resizing(32, mode)))
        assert applied(image, 0, 1, 0, 0, to=Resizing(32, mode)).equal(still)
    # shifts are shares of the edge, and what comes in is black
    shifted = applied(Image.new("RGB", (40, 40), "white"), 0, 1, 0.25, 0)
    assert shifted[:, :, :10].eq(0).all()
    assert shifted[:, :, 11:].eq(255).all()
    square = Image.new("RGB", (40, 40))
    square.paste("white", (10, 10, 30, 30))
    larger, turned = (applied(square, *how, 0, 0)[0] for how in ((0, 1.5), (45, 1)))
    assert larger[20, 6:34].eq(255).all()
    assert larger[20, :4].eq(0).all()
    assert turned[20, 8] > 0, "a corner of the square points left now"
    assert turned[11, 11] == 0


def test_half_of_the_views_are_as_in_evaluation_and_the_rest_are_the_augmentations():
    image, to, crops = noise(40, 30), Resizing(16), RandomResizedCrop()
    augmentation, rng = HalfWhole(crops), np.random.default_rng(0)
    drawn = [augmentation.parameters(rng, image.width, image.height) for _ in range(2000)]
    cropped = [parameters for parameters in drawn if parameters]
    assert len(cropped) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert len(set(cropped)) > 0.95 * len(cropped)
    assert to_tensor(augmentation.apply(image, (), to)).equal(to_tensor(resize_and_crop(image, to)))
    for parameters in cropped[:5]:
        expected = to_tensor(crops.apply(image, parameters[1:], to))
        assert to_tensor(augmentation.apply(image, parameters, to)).equal(expected)

    # also one that draws no number
    mirror = ImageOps.mirror(image)
    crops.parameters, crops.apply = lambda *_: (), lambda *_: mirror
    drawn = {augmentation.parameters(rng, 40, 30) for _ in range(20)}
    assert [augmentation.apply(image, view, to) is mirror for view in sorted(drawn)] == [0, 1]


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="augmentation 'cutmix' is unknown"):
        build_augmentation("cutmix")

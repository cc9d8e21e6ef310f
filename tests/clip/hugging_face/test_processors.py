"""How images are prepared, compared with the image processors of transformers."""

import shutil

import pytest
import torch
import world
from hf_folders import SIZE, SQUARE, features, processor_of, transformers
from runs import noise

from kdpl.clip import ClipConfig, Preprocessing, load_image_clip
from kdpl.clip.hugging_face.loading import KINDS, crop_share
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.errors import WeightsError

# fields that differ from the defaults of a class
CROPPED = {"do_center_crop": True, "crop_size": SQUARE}
STANDARDISED = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
LEVELS = {"image_mean": [110.0] * 3, "image_std": [60.0] * 3}
CHANGES = {
    "not normalised": {"do_normalize": False},
    "normalised otherwise": STANDARDISED,
    "in 0..255, normalised": {"do_rescale": False, **STANDARDISED, **LEVELS},
    "in 0..2": {"rescale_factor": 1 / 127.5},
    "bilinear": {"resample": 2},
    "bicubic": {"resample": 3},
    "squashed": {"size": SQUARE, "do_center_crop": False},
    "squashed and cropped": {"size": {"height": 40, "width": 40}, **CROPPED},
    "a short edge and a crop": {"size": {"shortest_edge": 48}, **CROPPED},
    "a crop that is too large": {"size": {"height": 28, "width": 28}, **CROPPED},
}


@pytest.fixture
def loaded(written, tmp_path):
    """Load a kind's model with a processor: its folder, as transformers loads it, and its image half."""

    def load(kind, processor, **settings):
        folder = written(kind)
        path = shutil.copytree(folder.path, tmp_path / "model")
        processor.save_pretrained(path)
        return folder.model, load_image_clip(ClipConfig(f"hf:{path}", **settings))

    return load


# every kind with what its publishers use, and every change in one class of processors; that of SigLIP does not crop
# before transformers 5
CASES = [(kind, {}) for kind in KINDS]
CASES += [("clip", fields) for fields in CHANGES.values()]
CASES += [("siglip", CHANGES["in 0..255, normalised"]), ("tipsv2", CHANGES["in 0..2"])]
CASES += [("chinese_clip", CHANGES["squashed and cropped"])]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_pixels_and_features_are_those_of_a_kinds_own_processor(kind, changes, loaded):
    processor, image = processor_of(kind, **changes), noise(12, 8).resize((75, 50))
    model, clip = loaded(kind, processor)
    expected = processor(image, return_tensors="pt")["pixel_values"].float()
    images = to_tensor(resize_and_crop(image, clip.preprocessing.resizing))[None]
    # transformers 5 resizes tensors, which rounds otherwise than Pillow, by a level of 255 at most
    apart = (clip.image_tower.pixels(images) - expected).abs()
    assert (apart * 255 * torch.tensor(clip.preprocessing.std).view(3, 1, 1)).max() < 1.01
    wanted = features(model.get_image_features(pixel_values=expected))
    assert torch.cosine_similarity(clip.image_tower(images), wanted).item() > 0.999


def test_what_the_config_sets_wins_over_the_processor(loaded):
    processor = processor_of("clip", do_normalize=False)
    _, clip = loaded("clip", processor, mean=(0.1, 0.2, 0.3), resize_mode="squash")
    expected = Preprocessing(SIZE, (0.1, 0.2, 0.3), (1.0,) * 3, "squash", crop_pct=SIZE / 40)
    assert clip.preprocessing == expected


def test_the_edge_before_a_crop_is_kept_in_its_share():
    def edge(size):
        share = crop_share(224, size)
        return Preprocessing(224, (0.5,) * 3, (0.5,) * 3, crop_pct=share).resizing.edge

    assert [size for size in range(112, 449) if edge(size) != size] == []


REFUSED = [
    ("do_resize", {"do_resize": False}),
    *(("resample", {"resample": number}) for number in (0, 1, 4, 5)),
    ("do_pad", {"do_pad": True, "pad_size": {"height": 64, "width": 64}}),
    ("size", {"size": {"height": 32, "width": 48}}),
    ("size", {"size": {"shortest_edge": 32, "longest_edge": 64}}),
    ("size", {"size": {"max_height": 32, "max_width": 32}}),
    ("do_center_crop", {"size": {"shortest_edge": 32}, "do_center_crop": False}),
    ("crop_size", {"do_center_crop": True, "crop_size": {"height": 24, "width": 32}}),
    ("crop_size", {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}),
]


@pytest.mark.parametrize(("field", "changes"), REFUSED)
def test_a_processor_that_prepares_images_otherwise_is_refused_by_its_field(field, changes, loaded):
    processor = processor_of("clip", **changes)
    with world.refused(WeightsError, f"has {field} "):
        loaded("clip", processor)


def test_a_processor_of_another_class_is_refused(loaded):
    # its short edge is 256 / 224 times the size, which no field says
    with world.refused(WeightsError, "has image_processor_type Levit"):
        size = {"shortest_edge": 32}
        loaded("clip", transformers.LevitImageProcessor(size=size, crop_size=SQUARE))

"""Training sees the images that evaluation sees: each view is made for the tower that gets it."""

import numpy as np
import open_clip
import pytest
import torch
import world
from PIL import Image
from runs import noise
from timm.data import create_transform

from kdpl import DomainDataModule
from kdpl.clip import ClipConfig, Preprocessing, weights
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.losses import DistillationLoss
from kdpl.prompts import StudentPrompts
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.refinement.target import Refined

# widths and heights
SHAPES = [(57, 32), (20, 33), (97, 41), (33, 20), (32, 32)]
SHAPES += [(200, 7), (41, 90), (5, 4), (64, 65), (50, 37)]
MEAN = (0.48145466, 0.4578275, 0.40821073)
CROPS = {"shortest": "center", "squash": "squash"}


def tower(mode, interpolation="bicubic", crop_pct=1.0, size=32):
    return Preprocessing(size, MEAN, (0.3, 0.3, 0.3), mode, interpolation, crop_pct)


def expected(images, pictures):
    """The evaluation transform of timm, uint8 [N, 3, S, S]."""
    crop = {"crop_pct": images.crop_pct, "crop_mode": CROPS[images.resize_mode]}
    crop["interpolation"] = images.interpolation
    prepare = create_transform(images.image_size, mean=images.mean, use_prefetcher=True, **crop)
    return torch.stack([prepare(picture) for picture in pictures])


TOWERS = [
    *(tower(mode, way) for mode in CROPS for way in ("bicubic", "bilinear")),
    *(tower(mode, "bilinear", crop) for mode in CROPS for crop in (0.875, 0.95, 1.15)),
]


@pytest.mark.parametrize("images", TOWERS, ids=str)
def test_the_evaluation_transform_is_that_of_timm_and_open_clip_pixel_by_pixel(images):
    rng = np.random.default_rng(0)
    pictures = [
        noise(*shape, seed=i)
        for i, shape in enumerate([*SHAPES, (1, 7), *rng.integers(4, 130, (40, 2))])
    ]
    made = torch.stack(
        [to_tensor(resize_and_crop(picture, images.resizing)) for picture in pictures]
    )
    assert torch.equal(made, expected(images, pictures))
    if images.crop_pct == 1:
        ways = {"resize_mode": images.resize_mode, "interpolation": images.interpolation}
        prepare = open_clip.image_transform(32, False, mean=(0, 0, 0), std=(1, 1, 1), **ways)
        of_open_clip = [(prepare(picture) * 255).round().to(torch.uint8) for picture in pictures]
        assert torch.equal(made, torch.stack(of_open_clip))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of two classes, train, val and test, and a pool beside them; every image of another shape and noise."""
    root, seed = tmp_path_factory.mktemp("pictures"), 0
    folders = {f"data/{split}/{name}": 3 for split in ("train", "val") for name in "ab"}
    for folder, count in {**folders, "pool": 10}.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            noise(*SHAPES[seed % len(SHAPES)], seed=seed).save(root / folder / f"{number}.png")
            seed += 1
    return root


def images_in(root):
    options = {"augmentation": "none", "num_workers": 0, "shots": None, "val_shots": None}
    return DomainDataModule(
        "folder", root=str(root / "data"), unlabeled=str(root / "pool"), batch_size=5, **options
    )


@pytest.mark.parametrize("student", [TOWERS[0], tower("squash", "bilinear", 0.9, 48)], ids=str)
def test_views_under_none_are_the_evaluation_transform_of_each_tower(student, pictures):
    data = images_in(pictures)
    labeled, pool = [record.source for record in data.labels.training()], list(data.pool.images)

    def assert_views(views, sources, images=student):
        assert torch.equal(torch.stack([*views]), expected(images, map(Image.open, sources)))

    dataset = data.train_dataloader_for("labeled", student.resizing).dataset
    assert_views((dataset[i, 3].images for i in range(6)), labeled)

    # ten unlabelled images, and the training images
    assert pool[10:] == [record.source for record in data.splits.train]
    # a further view for a teacher that resizes otherwise
    for teacher in (tower("squash"), student):
        loader = data.train_dataloader_for("unlabeled", student.resizing, teacher.resizing)
        items = [loader.dataset[i, 2] for i in range(len(pool))]
        assert [int(item.indices) for item in items] == list(range(len(pool)))
        assert_views((item.images for item in items), pool)
        if teacher == student:
            assert all(item.teacher_images is None for item in items)
        else:
            assert_views((item.teacher_images for item in items), pool, teacher)

    val = data.evaluation_dataloader_for("val", student.resizing).dataset
    records = data.labels.evaluation("val")
    assert_views((val[i].images for i in range(6)), [record.source for record in records])
    assert_views(data.preview(len(pool), student.resizing), pool)


def test_in_a_fit_towers_see_the_evaluation_transform(pictures, tmp_path, monkeypatch):
    """Start of prompts, refinement, pool filter, cache, steps, validation and classifier."""
    teacher, ways, seen = tower("squash"), ("shortest", "bilinear"), {}

    def note(kind, method):
        call = getattr(kind, method)

        def noting(self, images, *rest):
            tower = images if isinstance(images, torch.nn.Module) else self
            pixels = rest[0] if tower is images else images
            seen.setdefault(who(self), []).append(pixels)
            return call(self, images, *rest)

        monkeypatch.setattr(kind, method, noting)

    def who(module):
        return module.folder.name if isinstance(module, FrozenTeacher) else "student"

    note(FrozenTeacher, "features")
    note(StudentEncoder, "forward")
    note(StudentEncoder, "init_at_mean_tokens")
    (tmp_path / "teacher").mkdir()
    changes = {"class_names": ("a", "b"), "num_base": None, "preprocessing": teacher}
    world.write_teacher(tmp_path / "teacher", **changes)
    config = ClipConfig("test-student", world.TAG)
    monkeypatch.setitem(weights._OPENAI, "resize_mode", ways[0])
    monkeypatch.setitem(weights._OPENAI, "interpolation", ways[1])
    student = world.StudentDistillation(
        config,
        str(tmp_path / "teacher"),
        vision_prompts=StudentPrompts(2, 3, "mean_token"),
        loss=DistillationLoss(weight=20),
        target=Refined(neighbors=2),
        pool_filter=0.05,
        teacher_cache=str(tmp_path / "cache"),
    )
    world.fit(student, tmp_path, 2, (), images_in(pictures), limit_val_batches=1.0)

    files = [Image.open(path) for path in sorted(pictures.rglob("*.png"))]
    assert student.preprocessing.resizing == tower(*ways).resizing
    towers = {"student": tower(*ways), "teacher": teacher}
    assert seen.keys() == towers.keys()
    for who_saw, images in towers.items():
        views = {row.numpy().tobytes() for row in expected(images, files)}
        rows = [row.numpy().tobytes() for batch in seen[who_saw] for row in batch]
        assert len(set(rows)) > 10, "more than the pool"
        assert set(rows) <= views, who_saw

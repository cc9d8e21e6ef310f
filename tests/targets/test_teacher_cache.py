import io
import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from filelock import FileLock
from runs import noise

from kdpl import DomainDataModule
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.needs import Needs
from kdpl.data.options import ClassOptions, ReadingOptions
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.resizing import Resizing
from kdpl.targets import store as module
from kdpl.targets.store import Work
from kdpl.targets.teacher_cache import TeacherCache, fill, manifest_of

WIDTH, SIZE, VIEWS = 4, Resizing(8), 3
SHARDS = [f"shard-0000{shard}.npy" for shard in range(3)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images of two classes, each of noise of its own; four images a shard."""
    for number in range(10):
        path = tmp_path / f"data/train/{'ab'[number // 5]}/{number % 5}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(14, 12, seed=number).save(path)
    monkeypatch.setattr(module, "_FEATURES_PER_SHARD", 4 * VIEWS)
    return tmp_path


def encode(images):
    """The mean colours of images, and one more number."""
    means = images.float().mean(dim=(2, 3)) / 255
    return torch.cat([means, 1 - means[:, :1]], dim=1)


def data(folder, **options):
    settings = {"root": str(folder / "data"), "shots": None}
    return DomainDataModule("folder", **{**settings, "batch_size": 5, "num_workers": 0, **options})


def vectors_of(resizing=SIZE):
    preprocessing = SimpleNamespace(resizing=resizing)
    return SimpleNamespace(teacher="t", vectors=torch.empty(1, WIDTH), preprocessing=preprocessing)


def inputs_of(datamodule, resizing):
    """What a cache is described by."""
    return SimpleNamespace(
        pool=datamodule.pool, vectors=vectors_of(resizing), dataset=datamodule.dataset,
        files_of=datamodule.files_of, views_origin=datamodule.views_origin,
    )  # fmt: skip


def needed(datamodule, views=VIEWS, resizing=SIZE):
    return manifest_of(inputs_of(datamodule, resizing), views)


def views_of(datamodule):
    return UnlabeledImages(datamodule.pool.images, datamodule.view(SIZE))


def filled(folder, into="cache", views=VIEWS, encode=encode, seed=1, num_workers=0, **options):
    """Fill a cache; returns the number of features that were computed."""
    datamodule = data(folder, seed=seed)
    rest = {"images": views_of(datamodule), "batch_size": 7, **options}
    work = Work(encode=encode, num_workers=num_workers, **rest)
    return fill(folder / into, needed(datamodule, views), work)


def opened(folder):
    return TeacherCache.open(folder / "cache", needed(data(folder)))


class Distiller(world.Probe):
    def __init__(self, cache):
        super().__init__()
        self.cache, self.needs = cache, Needs("unlabeled", SIZE, SIZE)

    def on_fit_start(self):
        if self.cache is not None:
            features = TeacherCache.open(self.cache, needed(self.trainer.datamodule))
            self.needs = replace(self.needs, features=features)

    def on_train_start(self):
        origin = self.trainer.datamodule.origin(prepared=True)
        self.view_source = origin["seed of the views"], origin["views"]


def fit(folder, epochs=VIEWS, cached=True, **options):
    distiller = Distiller(folder / "cache" if cached else None)
    trainer = world.quiet_trainer(folder, epochs, use_distributed_sampler=False)
    trainer.fit(distiller, datamodule=data(folder, **options))
    return distiller


def same_images(some, others):
    return all(
        torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)
        for one, other in zip(some, others, strict=True)
    )


def test_features_are_those_of_the_views_in_the_documented_layout(folder):
    images = views_of(data(folder))
    decoded, open_image = [], images.view.open_image
    images.view.open_image = lambda source: decoded.append(source) or open_image(source)
    assert filled(folder, images=images, batch_size=2) == 10 * VIEWS
    assert decoded == list(images.sources), "each once for all its views"
    stored = np.concatenate([np.load(folder / "cache" / name) for name in SHARDS])
    assert stored.shape == (10, VIEWS, WIDTH)
    cache = opened(folder)
    for copy in (cache, pickle.loads(pickle.dumps(cache))):  # noqa: S301
        for index, view in np.ndindex(10, VIEWS):
            feature = encode(images[index, view].images[None])[0].half().numpy()
            assert np.array_equal(copy.read(view, index), feature)
            assert np.array_equal(stored[index, view], feature)
    manifest = json.loads((folder / "cache/manifest.json").read_text())
    assert not [key for key in manifest if "label" in key or "class" in key]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_filling_resumes_with_the_same_files(folder, num_workers):
    filled(folder, "whole")
    parts = iter(range(2))  # of at most 7 views

    def interrupted(images):
        if next(parts, None) is None:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        filled(folder, encode=interrupted, num_workers=num_workers)
    assert len(list((folder / "cache").glob("shard*.npy"))) == 1
    assert filled(folder, num_workers=num_workers) == 6 * VIEWS
    assert filled(folder) == 0
    for name in (*SHARDS, "manifest.json"):
        assert (folder / "whole" / name).read_bytes() == (folder / "cache" / name).read_bytes()


def test_several_processes_share_the_missing_shards(folder):
    # the first has finished its own before the second asks what is missing
    counts = [filled(folder, batch_size=4, rank=rank, world_size=2) for rank in (1, 0)]
    assert sum(counts) == 10 * VIEWS
    assert min(counts) > 0
    assert filled(folder) == 0
    filled(folder, "alone", batch_size=4)
    for name in SHARDS:
        assert (folder / "cache" / name).read_bytes() == (folder / "alone" / name).read_bytes()


def test_features_that_are_not_finite_are_named_and_not_written(folder):
    bad = views_of(data(folder))[3, 1].images

    def broken(images):
        same = (images == bad).flatten(1).all(dim=1, keepdim=True)
        return encode(images).masked_fill(same, torch.nan)

    with pytest.raises(DataError, match="images 0 to 3 are not finite"):
        filled(folder, encode=broken)
    assert not list((folder / "cache").glob("shard*"))


def test_a_cache_is_filled_by_one_command_with_a_known_number_of_views(folder):
    with pytest.raises(ConfigError, match=r"number of views .* is unknown"):
        filled(folder, views=0)
    (folder / "cache").mkdir()
    with pytest.raises(DataError, match=r"is not a teacher cache"):
        opened(folder)
    with (
        FileLock(folder / "cache/.lock"),
        pytest.raises(DataError, match="is being filled by another command"),
    ):
        filled(folder)
    filled(folder)
    with FileLock(folder / "cache/.lock"):
        assert filled(folder) == 0, "a complete one is only read"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_sees_the_same_views_with_a_cache_and_their_features(folder, num_workers):
    plain = fit(folder, cached=False)
    assert all(batch.teacher_features is None for batch in plain.train_batches)
    filled(folder)
    cached = fit(folder, num_workers=num_workers)
    assert same_images(cached.train_batches, plain.train_batches)
    assert cached.view_source == plain.view_source == (1, "one in each epoch")
    for batch in cached.train_batches:
        assert batch.teacher_features.dtype == torch.float16
        assert torch.equal(batch.teacher_features, encode(batch.images).half())


def test_epochs_go_through_the_views_again(folder):
    filled(folder, views=2)
    distiller = fit(folder, epochs=5)
    assert distiller.view_source == (1, "2 of each")
    batches, seen = distiller.train_batches, []
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        order = torch.cat([first.indices, second.indices]).argsort()
        seen.append(torch.cat([first.images, second.images])[order])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not any(torch.equal(one, other) for one, other in zip(seen[0], seen[1], strict=True))


def test_runs_of_any_seed_and_share_see_views_of_the_seed_of_the_cache(folder):
    filled(folder)
    whole = fit(folder).train_batches
    other = fit(folder, seed=7, unlabeled_share=0.5).train_batches
    views = {
        image.numpy().tobytes(): feature
        for batch in whole
        for image, feature in zip(batch.images, batch.teacher_features, strict=True)
    }
    assert sum(len(batch.images) for batch in other) == 5 * VIEWS
    for batch in other:
        for image, feature in zip(batch.images, batch.teacher_features, strict=True):
            assert torch.equal(views[image.numpy().tobytes()], feature)
    # filled by a run of another seed, too
    (folder / "cache" / SHARDS[1]).unlink()
    assert filled(folder, seed=7) == 4 * VIEWS
    assert same_images(fit(folder).train_batches, whole)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"augmentation": RandomResizedCrop((0.5, 1.0))}, "augmentation.scale is [0.08, 1.0] "),
        ({"reading": ReadingOptions(background=(0, 0, 0))}, "decoding.background is [255, "),
        ({"unlabeled": "copied"}, "images is 10 there and 15 here"),
        ({"resizing": Resizing(16)}, "resizing.image_size is 8 there and 16 here"),
    ],
)
def test_a_cache_of_something_else_is_refused(folder, options, difference, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree("data/train/a", "copied")
    filled(folder)
    resizing = options.get("resizing", SIZE)
    options = {name: value for name, value in options.items() if name != "resizing"}
    for use in (TeacherCache.open, lambda *args: fill(*args, None)):
        with world.refused(DataError, re.escape(difference)):
            use(folder / "cache", needed(data(folder, **options), resizing=resizing))


def test_a_moved_dataset_with_other_texts_keeps_its_cache(folder):
    filled(folder)
    (folder / "data").rename(folder / "moved")
    moved = {"root": str(folder / "moved"), "classes": ClassOptions(text="a {}")}
    TeacherCache.open(folder / "cache", needed(data(folder, **moved), views=9))
    (folder / "moved/train/a/4.png").rename(folder / "moved/train/a/5.png")
    with pytest.raises(DataError, match=r"sources is \w+ there"):
        TeacherCache.open(folder / "cache", needed(data(folder, **moved)))


def test_a_cache_is_of_images_and_not_of_their_paths(folder, capsys):
    filled(folder)
    image, file = folder / "data/train/a/3.png", folder / "cache/manifest.json"
    whole = file.read_text()
    # a file that is only touched may be another one, until somebody says that it is the same
    os.utime(image, (0, 2e9))
    touched = needed(data(folder))
    remedy = r"choose another .* or, if the images are copies, delete this line of manifest.json$"
    for use in (TeacherCache.open, lambda *args: fill(*args, None)):
        with world.refused(DataError, rf"last change of images is .* of 3.png .*\): {remedy}"):
            use(folder / "cache", touched)
    file.write_text("".join(line for line in whole.splitlines(True) if "last change" not in line))
    TeacherCache.open(folder / "cache", touched)
    # another size is another image, whatever was deleted
    noise(15, 12, seed=99).save(image)
    with world.refused(DataError, r"\(size of images is .*\): choose another [^,]*, or remove it$"):
        TeacherCache.open(folder / "cache", needed(data(folder)))
    # a cache of an earlier version has paths alone
    assert capsys.readouterr().err == ""
    earlier = {k: v for k, v in json.loads(whole).items() if not k.endswith("of images")}
    file.write_text(json.dumps(earlier))
    TeacherCache.open(folder / "cache", needed(data(folder)))
    assert f"{file} has only the paths of its images" in capsys.readouterr().err


def test_where_all_images_were_looked_at_a_cache_is_of_their_contents(folder, capsys):
    def manifest():
        datamodule = data(folder)
        datamodule.reading.scan(trains=True)
        return needed(datamodule)

    before, image = manifest(), folder / "data/train/a/3.png"
    assert "content of images" in before
    os.utime(image, (0, 2e9))
    assert manifest() == before
    noise(14, 12, seed=99).save(image)
    assert manifest() != before
    (folder / "data/test/a").mkdir(parents=True)
    noise(14, 12, seed=55).save(folder / "data/test/a/0.png")
    noise(14, 12, seed=3).save(image)
    assert manifest() == before, "test images are not in the cache"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", lambda content: content[:100]),
        (SHARDS[1], lambda content: content[:-1]),
        (SHARDS[1], lambda _: npy(np.zeros(3))),
        (SHARDS[1], lambda _: npy(np.array([{}]))),
    ],
)
def test_a_damaged_file_is_refused_before_training(folder, name, damage):
    filled(folder)
    file = folder / "cache" / name
    file.write_bytes(damage(file.read_bytes()))
    with world.refused(DataError, f"{name} is damaged"):
        fit(folder)

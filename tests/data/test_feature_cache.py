import json
import pickle
import re

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from kdpl.data import DomainDataModule
from kdpl.data import feature_cache as module
from kdpl.data.augmentation import LightAffine, RandomResizedCrop
from kdpl.data.feature_cache import CachedView, FeatureCache, Manifest, fill, verify
from kdpl.errors import ConfigError, DataError

WIDTH, SIZE, VIEWS = 4, 8, 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten images of two classes, each of noise of its own; four images a shard."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(5):
            path = tmp_path / "data/train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
    monkeypatch.setattr(module, "_FEATURES_PER_SHARD", 4 * VIEWS)
    return tmp_path


def encode(images):
    """The mean colours of images, and one more number."""
    means = images.float().mean(dim=(2, 3)) / 255
    return torch.cat([means, 1 - means[:, :1]], dim=1)


def data(folder, **options):
    settings = {"batch_size": 5, "num_workers": 0, "shots": None, "teacher_cache": str(folder / "cache")}
    return DomainDataModule("folder", root=str(folder / "data"), **{**settings, **options})


def needed(datamodule, views=VIEWS, teacher="t", size=SIZE):
    return datamodule.cache_manifest(teacher, WIDTH, size, views)


def filled(folder, datamodule=None, views=VIEWS, into="cache", encode=encode, batch_size=7, **options):
    datamodule = datamodule or data(folder)
    count = fill(
        folder / into,
        needed(datamodule, views),
        datamodule.unlabeled_images(SIZE),
        encode,
        **{"batch_size": batch_size, "num_workers": 0, **options},
    )
    return count, FeatureCache.open(folder / into, needed(datamodule, views))


class Distiller(LightningModule):
    """Notes its batches."""

    train_split, image_size, teacher_fingerprint, teacher_width = "unlabeled", SIZE, "t", WIDTH

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def setup(self, stage):
        self.view_source = self.trainer.datamodule.view_source

    def training_step(self, batch):
        self.seen.append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, epochs=VIEWS, **options):
    distiller = Distiller()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    trainer.fit(distiller, datamodule=data(folder, **options))
    return distiller


def same_images(some, others):
    assert len(some) == len(others)
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(some, others, strict=True))


def test_features_are_those_of_the_views_in_the_documented_layout(folder):
    count, cache = filled(folder)
    assert count == 10 * VIEWS
    images = data(folder).unlabeled_images(SIZE)
    shards = [np.load(folder / f"cache/shard-0000{shard}.npy") for shard in range(3)]
    assert [shard.shape for shard in shards] == [(4, VIEWS, WIDTH), (4, VIEWS, WIDTH), (2, VIEWS, WIDTH)]
    for opened in (cache, pickle.loads(pickle.dumps(cache))):  # noqa: S301
        for index in range(10):
            for view in range(VIEWS):
                feature = opened.read(view, index)
                assert feature.dtype == np.float16
                expected = encode(images[index, view][0][None])[0].half().numpy()
                assert np.array_equal(feature, expected)
                assert np.array_equal(feature, np.concatenate(shards)[index, view])


def test_each_image_is_decoded_once_for_all_its_views(folder):
    images = data(folder).unlabeled_images(SIZE)
    opened, open_image = [], images.view.open_image
    images.view.open_image = lambda source: opened.append(source) or open_image(source)
    fill(folder / "cache", needed(data(folder)), images, encode, batch_size=2, num_workers=0)
    assert opened == list(images.sources)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_filling_resumes_at_the_first_missing_shard_with_the_same_files(folder, num_workers):
    filled(folder, into="whole", num_workers=num_workers)
    calls = []

    def interrupted(images):
        calls.append(len(images))
        if sum(calls) > 4 * VIEWS:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        filled(folder, encode=interrupted, num_workers=num_workers)
    with pytest.raises(DataError, match=r"incomplete, 2 of 3 shards are missing: fill it with python -m kdpl cache"):
        FeatureCache.open(folder / "cache", needed(data(folder)))
    progress = []
    count, _ = filled(folder, num_workers=num_workers, on_progress=lambda *now: progress.append(now))
    assert count == 6 * VIEWS
    assert progress[-1] == (count, count)
    assert filled(folder)[0] == 0
    for path in (folder / "whole").glob("*-*"):
        assert path.read_bytes() == (folder / "cache" / path.name).read_bytes()


def test_several_processes_share_the_missing_shards(folder):
    datamodule = data(folder)
    counts = [
        fill(
            folder / "cache",
            needed(datamodule),
            datamodule.unlabeled_images(SIZE),
            encode,
            batch_size=4,
            num_workers=0,
            rank=rank,
            world_size=2,
        )
        for rank in (1, 0)
    ]
    assert sum(counts) >= 6 * VIEWS
    assert filled(folder)[0] == 10 * VIEWS - sum(counts)
    filled(folder, into="alone", batch_size=4)
    for shard in range(3):
        name = f"shard-0000{shard}.npy"
        assert (folder / "cache" / name).read_bytes() == (folder / "alone" / name).read_bytes()


def test_only_one_command_fills_a_cache_at_a_time(folder):
    (folder / "cache").mkdir()
    with FileLock(folder / "cache/.lock"), pytest.raises(DataError, match="is being filled by another command: wait"):
        filled(folder)


def test_features_that_are_not_finite_are_refused_and_not_written(folder):
    def broken(images):
        return encode(images) / torch.zeros(1)

    with pytest.raises(DataError, match="view 0 of unlabelled image 0 are not finite: check its weights"):
        filled(folder, encode=broken)
    assert not list((folder / "cache").glob("shard*"))


def test_a_cache_is_made_in_an_empty_folder_with_a_known_number_of_views(folder):
    with pytest.raises(ConfigError, match=r"number of views .* is unknown: set trainer\.max_epochs"):
        filled(folder, views=None)
    (folder / "cache").mkdir()
    (folder / "cache/notes.txt").touch()
    with pytest.raises(DataError, match="holds something else than a teacher cache"):
        filled(folder)
    (folder / "cache/notes.txt").unlink()
    filled(folder)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_sees_the_views_that_it_sees_without_a_cache_and_their_features(folder, num_workers):
    plain = fit(folder, teacher_cache=None)
    assert not any(isinstance(batch, CachedView) for batch in plain.seen)
    assert plain.view_source == (1, None)
    filled(folder)
    cached = fit(folder, num_workers=num_workers)
    assert same_images(cached.seen, plain.seen)
    assert cached.view_source == (1, None)
    for batch in cached.seen:
        assert batch.feature.dtype == torch.float16
        assert torch.equal(batch.feature, encode(batch.image).half())


def test_epochs_go_through_the_views_again(folder):
    filled(folder, views=2)
    distiller = fit(folder, epochs=5)
    assert distiller.view_source == (1, 2)
    seen = [
        {int(i): x for batch in distiller.seen[2 * e : 2 * e + 2] for x, i in zip(batch[0], batch[1], strict=True)}
        for e in range(5)
    ]
    for i in range(10):
        assert torch.equal(seen[0][i], seen[2][i])
        assert torch.equal(seen[1][i], seen[3][i])
        assert not torch.equal(seen[0][i], seen[1][i])


def test_runs_of_any_seed_and_share_see_views_of_the_seed_of_the_cache(folder):
    filled(folder)
    every = fit(folder).seen
    other = fit(folder, seed=7, unlabeled_share=0.5).seen
    assert not same_images(every[: len(other)], other)
    views = {x.numpy().tobytes(): f for batch in every for x, f in zip(batch.image, batch.feature, strict=True)}
    assert sum(len(batch.image) for batch in other) == 5 * VIEWS
    for batch in other:
        for image, feature in zip(batch.image, batch.feature, strict=True):
            assert torch.equal(views[image.numpy().tobytes()], feature)
    # filled by a run of another seed, too
    (folder / "cache/shard-00001.npy").unlink()
    assert filled(folder, data(folder, seed=7))[0] == 4 * VIEWS
    assert same_images(fit(folder).seen, every)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "u"}, "teacher is 't' there and 'u' here"),
        ({"size": 9}, "image_size is 8 there and 9 here"),
        ({"augmentation": "light_affine"}, "augmentation is {'class': 'kdpl.data.augmentation.RandomResizedCrop', "),
        ({"augmentation": RandomResizedCrop(scale=(0.5, 1.0))}, "augmentation is {"),
        ({"class_text": "a {}"}, None),
        ({"more": "data/train/a/5.png"}, "images is 10 there and 11 here"),
        ({"renamed": "data/train/a/5.png"}, "sources is '"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_first_difference(folder, changes, words):
    filled(folder)
    settings = dict(changes)
    if more := settings.pop("more", None):
        Image.new("RGB", (9, 9)).save(folder / more)
    if renamed := settings.pop("renamed", None):
        (folder / "data/train/a/4.png").rename(folder / renamed)
    manifest = {key: settings.pop(key) for key in ("teacher", "size") if key in settings}
    other = needed(data(folder, **settings), **manifest)
    if words is None:
        FeatureCache.open(folder / "cache", other)
        return
    for use in (FeatureCache.open, lambda *args: fill(*args, None, encode, batch_size=1, num_workers=0)):
        with pytest.raises(DataError, match=re.escape(words)) as error:
            use(folder / "cache", other)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(": choose another folder as data.init_args.teacher_cache, or remove it")


def test_another_number_of_views_is_refused_where_it_is_asked_for(folder):
    filled(folder)
    FeatureCache.open(folder / "cache", needed(data(folder), views=9))
    with pytest.raises(DataError, match="has 3 views of each image, expected 9: leave --views out"):
        FeatureCache.open(folder / "cache", needed(data(folder), views=9), views=9)


def test_a_moved_dataset_keeps_its_cache(folder):
    filled(folder)
    (folder / "data").rename(folder / "moved")
    moved = DomainDataModule("folder", root=str(folder / "moved"), shots=None)
    FeatureCache.open(folder / "cache", needed(moved))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], r"is damaged or of another version \(the file: .*: remove the folder"),
        (lambda _: "[]", "is damaged or of another version"),
        (lambda text: text.replace('"width"', '"breadth"'), r"\(width: "),
        (lambda text: text.replace('"width": 4', '"width": 0'), r"\(width: "),
        (lambda text: text.replace('"width": 4', '"width": "x"'), r"\(width: "),
        (lambda text: text.replace('"version": 2', '"version": 1'), r"\(version: "),
        (None, r"is not a teacher cache \(it has no manifest\.json\): choose another folder"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(folder, damage, words):
    filled(folder)
    file = folder / "cache" / module.MANIFEST
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text()))
    with pytest.raises(DataError, match=words) as error:
        FeatureCache.open(folder / "cache", needed(data(folder)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "other shape", "pickle"])
def test_a_damaged_shard_is_refused_before_training(folder, damage):
    filled(folder)
    shard = folder / "cache/shard-00001.npy"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        np.save(shard, np.zeros(3) if damage == "other shape" else np.array([{}]))
    with pytest.raises(DataError, match=r"shard-00001\.npy is damaged \(.*\): remove shard-00001\.npy and fill"):
        FeatureCache.open(folder / "cache", needed(data(folder)))
    with pytest.raises(DataError, match=r"shard-00001\.npy is damaged"):
        fit(folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_wrong_checksum_ends_training_with_one_sentence(folder, num_workers):
    filled(folder)
    shard = folder / "cache/shard-00001.npy"
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 4
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard-00001\.npy is damaged \(its checksum differs\)") as error:
        fit(folder, num_workers=num_workers)
    assert "\n" not in str(error.value)


def test_verifying_compares_random_entries(folder):
    _, cache = filled(folder, views=2)
    images = data(folder).unlabeled_images(SIZE)
    options = {"tolerance": 2e-3, "batch_size": 4, "num_workers": 0}
    assert verify(cache, images, encode, entries=7, **options) == 7
    assert verify(cache, images, encode, entries=99, **options) == 20
    assert [verify(cache, images, encode, entries=7, rank=r, world_size=2, **options) for r in (0, 1)] == [4, 3]
    with pytest.raises(DataError, match=r"^7 of 7 entries .* \(such as view \d of image \d, by 50\.\d%\): restore"):
        verify(cache, images, lambda pixels: encode(pixels) * 2, entries=7, **options)


def test_no_label_is_in_a_cache_or_its_batches(folder):
    filled(folder)
    assert fit(folder).seen[0]._fields == ("image", "image_index", "feature")
    manifest = json.loads((folder / "cache/manifest.json").read_text())
    assert not [key for key in manifest if "label" in key or "class" in key]


def test_sources_are_told_apart_whatever_they_are():
    def digest(*sources):
        return Manifest.of(
            teacher="t",
            width=1,
            dataset="d",
            sources=sources,
            image_size=1,
            augmentation=LightAffine(),
            view_seed=0,
            views=1,
        ).sources

    assert digest("a.png", "b.png") == digest("/x/a.png", "/x/b.png") != digest("/x/ab.png", "/x/.png")
    assert digest("/x/\udcff.png", "/x/a.png") != digest("/x/\udcfe.png", "/x/a.png"), "not UTF-8"

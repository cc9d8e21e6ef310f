import json

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from kdpl.data import DomainDataModule
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.datasets import CachedView
from kdpl.errors import ConfigError, DataError

WIDTH = 4


@pytest.fixture
def folder(tmp_path):
    """Ten images of two classes, each of noise of its own."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        for i in range(5):
            path = tmp_path / "data/train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
    return tmp_path


class Distiller(LightningModule):
    """Opens the cache as a student does, and fills it with the mean colours of what it sees."""

    def __init__(self, image_size=8, **options):
        super().__init__()
        self.train_split, self.image_size, self.options = "unlabeled", image_size, options
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def setup(self, stage):  # noqa: ARG002
        self.cache = self.trainer.datamodule.open_teacher_cache("t", WIDTH, **self.options)

    def training_step(self, batch):
        if isinstance(batch, CachedView):
            missing = batch.feature.isnan().any(dim=1)
            if missing.any():
                self.cache.write(batch.row[missing], feature_of(batch.image[missing]))
        self.seen.append(batch)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def feature_of(images):
    means = images.float().mean(dim=(2, 3)) / 255
    return torch.cat([means, 1 - means[:, :1]], dim=1).half()


def in_folder(folder, **options):
    settings = {"batch_size": 5, "num_workers": 0, "shots": None, "teacher_cache": str(folder / "cache")}
    return DomainDataModule("folder", root=str(folder / "data"), **{**settings, **options})


def fit(folder, epochs=3, module=None, **options):
    module = module or Distiller()
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
    trainer.fit(module, datamodule=in_folder(folder, **options))
    return module


def same_images(some, others):
    assert len(some) == len(others)
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(some, others, strict=True))


def test_views_are_those_without_a_cache_while_there_is_one_for_each_epoch(folder):
    plain = fit(folder, teacher_cache=None).seen
    assert not any(isinstance(batch, CachedView) for batch in plain)
    for filled in (False, True):  # drawn, then replayed from what was stored
        module = fit(folder, fill_teacher_cache=True)
        assert module.cache.num_missing == (0 if filled else 30)
        assert same_images(module.seen, plain)
    read = fit(folder).seen
    assert same_images(read, plain)
    for batch in read:
        assert batch.feature.dtype == torch.float16
        assert torch.equal(batch.feature, feature_of(batch.image))


def test_epochs_go_through_the_views_again(folder):
    fit(folder, epochs=2, fill_teacher_cache=True)
    seen = fit(folder, epochs=5).seen
    by_epoch = [
        {int(i): image for batch in seen[2 * e : 2 * e + 2] for image, i in zip(batch[0], batch[1], strict=True)}
        for e in range(5)
    ]
    for i in range(10):
        assert torch.equal(by_epoch[0][i], by_epoch[2][i])
        assert torch.equal(by_epoch[0][i], by_epoch[4][i])
        assert torch.equal(by_epoch[1][i], by_epoch[3][i])
        assert not torch.equal(by_epoch[0][i], by_epoch[1][i])


def test_another_seed_shuffles_otherwise_and_sees_the_same_views(folder):
    first = fit(folder, fill_teacher_cache=True).seen
    other = fit(folder, seed=7).seen
    assert not same_images(first, other)

    def views(seen):
        return {(int(r)): x.numpy().tobytes() for b in seen for x, r in zip(b.image, b.row, strict=True)}

    assert views(first) == views(other)


def test_views_are_drawn_with_the_seed_of_the_cache_whoever_fills_it(folder):
    fit(folder, fill_teacher_cache=True)
    whole = (folder / "cache/shard-00000.bin").read_bytes()
    other = {"teacher_cache": str(folder / "other"), "fill_teacher_cache": True}
    fit(folder, epochs=1, module=Distiller(views=3), **other)
    assert fit(folder, seed=7, **other).cache.num_missing == 20
    assert (folder / "other/shard-00000.bin").read_bytes() == whole


def test_stored_parameters_are_replayed_whatever_the_generator_would_draw(folder, monkeypatch):
    seen = fit(folder, fill_teacher_cache=True).seen
    monkeypatch.setattr(RandomResizedCrop, "parameters", None)
    assert same_images(fit(folder).seen, seen)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_and_draw_the_same(folder, num_workers):
    plain = fit(folder, teacher_cache=None).seen
    assert same_images(fit(folder, fill_teacher_cache=True, num_workers=num_workers).seen, plain)
    read = fit(folder, num_workers=num_workers).seen
    assert same_images(read, plain)
    assert all(torch.equal(batch.feature, feature_of(batch.image)) for batch in read)


def test_a_share_needs_its_own_rows_alone_and_finds_them_in_a_whole_cache(folder):
    half = {"unlabeled_share": 0.5, "batch_size": 5}
    plain = fit(folder, teacher_cache=None, **half).seen
    assert len({int(i) for batch in plain for i in batch[1]}) == 5
    filled = fit(folder, fill_teacher_cache=True, **half)
    assert filled.cache.num_missing == 15
    assert same_images(filled.seen, plain)
    assert same_images(fit(folder, **half).seen, plain)
    assert fit(folder, fill_teacher_cache=True).cache.num_missing == 15, "the other half"
    # a subset drawn by another seed
    fit(folder, seed=3, **half)


def test_fewer_epochs_than_views_need_the_first_views_alone(folder):
    fit(folder, epochs=1, module=Distiller(views=4), fill_teacher_cache=True)
    fit(folder, epochs=1)
    with pytest.raises(DataError, match="lacks 10 of 20 features"):
        fit(folder, epochs=2)


def refused(kind, match, folder, **options):
    class Started(Distiller):
        def training_step(self, batch):  # noqa: ARG002
            raise AssertionError("training began")

    with pytest.raises(kind, match=match) as error:
        fit(folder, module=Started(**options.pop("module", {})), **options)
    text = str(error.value)
    assert "\n" not in text
    assert ": " in text


def test_a_cache_that_is_not_there_or_incomplete_is_refused_with_the_command_that_fills_it(folder):
    refused(DataError, "cache does not exist: fill it with python -m kdpl cache and the settings of this fit", folder)
    assert not (folder / "cache").exists()
    fit(folder, epochs=1, module=Distiller(views=2), fill_teacher_cache=True)
    refused(DataError, "lacks 10 of 20 features: fill it with python -m kdpl cache", folder)


def test_a_cache_of_something_else_is_refused_and_kept(folder):
    fit(folder, fill_teacher_cache=True)
    before = (folder / "cache/shard-00000.bin").read_bytes()
    for fill in (False, True):
        refused(DataError, "the augmentation is .* there", folder, augmentation="light_affine", fill_teacher_cache=fill)
        refused(
            DataError, "has 3 views of each image, 5 are asked", folder, module={"views": 5}, fill_teacher_cache=fill
        )
        refused(DataError, "image size of the student is 8", folder, module={"image_size": 9}, fill_teacher_cache=fill)
    Image.new("RGB", (8, 8)).save(folder / "data/train/b/5.png")
    refused(DataError, "the number of unlabelled images is 10 there and 11 here", folder)
    assert (folder / "cache/shard-00000.bin").read_bytes() == before


def test_a_damaged_cache_is_refused_before_training(folder):
    fit(folder, fill_teacher_cache=True)
    shard = folder / "cache/shard-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    refused(DataError, r"shard-00000\.bin has \d+ bytes in place of", folder)
    refused(DataError, r"shard-00000\.bin has \d+ bytes in place of", folder, fill_teacher_cache=True)
    shard.unlink()
    refused(DataError, r"shard-00000\.bin is missing", folder)
    assert fit(folder, fill_teacher_cache=True).cache.num_missing == 30
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_wrong_checksum_ends_training_with_one_sentence(folder, num_workers):
    fit(folder, fill_teacher_cache=True)
    shard = folder / "cache/shard-00000.bin"
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 4
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"shard-00000\.bin is damaged \(wrong checksum in row 29\)") as error:
        fit(folder, num_workers=num_workers)
    assert "\n" not in str(error.value)


def test_how_many_views_must_be_known_to_make_a_cache(folder):
    refused(ConfigError, "nothing says how many views", folder, epochs=-1, fill_teacher_cache=True)
    assert not (folder / "cache").exists()


def test_a_fit_of_no_epochs_needs_no_cache(folder):
    assert fit(folder, epochs=0).cache is None


def test_no_label_is_in_a_cache_or_its_batches(folder):
    module = fit(folder, fill_teacher_cache=True)
    assert module.seen[0]._fields == ("image", "image_index", "row", "feature")
    manifest = json.loads((folder / "cache/manifest.json").read_text())
    assert not [key for key in manifest if "label" in key or "class" in key]

import itertools
import shutil
from collections import Counter

import pytest
import torch
import world
from PIL import Image
from runs import noise
from world import Probe
from zoo import tag

from kdpl import DomainDataModule
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import build_data
from kdpl.data.options import ClassOptions, ReadingOptions
from kdpl.data.readers.digits import Digits
from kdpl.data.sampling import few_shot
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.resizing import Resizing

SQUARE = Resizing(8)


@pytest.fixture
def folder(tmp_path):
    """Five classes; train 6, val 5, test 3 images each, every image another grey; 4 more without labels."""
    shades = itertools.count(1)
    places = [f"data/{split}/{name}" for split in ("train", "val", "test") for name in "edcba"]
    for place in [*places, "pool"]:
        (tmp_path / place).mkdir(parents=True)
        for i in range({"train": 6, "val": 5, "test": 3}.get(place[5:-2], 4)):
            Image.new("RGB", (10, 8), (next(shades),) * 3).save(tmp_path / place / f"{i}.png")
    return tmp_path


def in_folder(folder, **options):
    settings = {"root": str(folder / "data"), "num_workers": 0, "augmentation": "none", "shots": 4}
    return DomainDataModule("folder", **{**settings, **options})


def trainer(folder, **options):
    options = {"limit_val_batches": 1.0, "use_distributed_sampler": False, **options}
    return world.quiet_trainer(folder, **options)


def test_the_labelled_split_is_the_sample_and_the_unlabelled_all_images(folder):
    whole, base = in_folder(folder, seed=3), in_folder(folder, seed=3, protocol="base_to_novel")
    sample, _ = few_shot(whole.splits.train, whole.splits.val, 4, 4, 3)
    assert Counter(record.label for record in sample) == dict.fromkeys(range(5), 4)
    first = [record for record in sample if record.label < 3]
    for data, num_base, records in ((whole, None, sample), (base, 3, first)):
        assert (data.class_names, data.num_base) == (tuple("abcde"), num_base)
        assert data.tuning_class_names == tuple("abcde"[:num_base])
        assert list(data.train_dataloader_for("labeled", SQUARE).dataset.records) == records
        unlabelled = data.train_dataloader_for("unlabeled", SQUARE).dataset
        assert isinstance(unlabelled, UnlabeledImages)
        # of all classes
        assert list(unlabelled.sources) == [record.source for record in whole.splits.train]


def test_validation_images_that_are_trained_on_are_labels_in_the_pool_and_nothing_else(folder):
    kept, data = in_folder(folder), in_folder(folder, train_on_val=True)
    train, val = kept.labels.tuning("labeled"), kept.labels.tuning("val")
    assert (data.labels.tuning("labeled"), data.labels.tuning("val")) == (train + val, [])
    assert len(train + val) == 5 * 4 + 5 * 5
    records = (*kept.splits.train, *kept.splits.val)
    assert [*data.pool.images] == [record.source for record in records]
    assert (data.splits.val, data.splits.test) == ((), kept.splits.test)
    assert data.val_dataloader() == []
    with world.refused(DataError, "no val split: add one, set data.init_args.train_on_val to"):
        data.labels.evaluation("val")
    assert data.labels.counts_in_stage(2) == (
        "labels in the batches of stage 2: 0 of 55; validation: 0 of 0; in no stage: 10 (shots 4); "
        "25 validation images are trained on (train_on_val), and none is left to calibrate "
        "a classifier on"
    )
    # of few classes or all, the same images of a class
    base = in_folder(folder, train_on_val=True, protocol="base_to_novel")
    assert base.labels.training() == [record for record in train + val if record.label < 3]


@pytest.mark.parametrize("trained_on", [True, False])
def test_contents_of_the_pool_have_those_of_validation_images_in_it(trained_on, folder, tmp_path):
    def contents(run):
        data = in_folder(folder, train_on_val=trained_on)
        data.reading.of_run(tmp_path / run)
        data.reading.scan(trains=True)
        return data.files_of(None)

    before = contents("before")
    image = next((folder / "data/val").rglob("*.*"))
    Image.new("RGB", (10, 8), (7, 77, 7)).save(image)
    assert (contents("after") != before) == trained_on


def test_without_shots_validation_images_stay_out_of_training(folder):
    data, kept = in_folder(folder, shots=0, train_on_val=True), in_folder(folder, shots=0)
    assert list(data.pool.images) == list(kept.pool.images)
    assert data.splits.val == kept.splits.val
    assert data.labels.counts_in_stage(2) == kept.labels.counts_in_stage(2)


def test_validation_is_capped_and_test_is_not(folder):
    for options, count, is_sample in (
        ({}, 5, False),
        ({"val_shots": None}, 5, False),
        ({"val_shots": 5, "shots": 5}, 5, False),
        ({"val_shots": 4}, 4, True),
        ({"val_shots": 4, "shots": 2}, 2, True),
    ):
        data = in_folder(folder, **options)
        assert len(data.evaluation_dataloader_for("val", SQUARE).dataset) == 5 * count
        assert len(data.evaluation_dataloader_for("test", SQUARE).dataset) == 5 * 3
        images, sampled = data.bounding_images()
        assert (images.tolist(), sampled) == ([*range(5 * count)], is_sample)
    # of a benchmark, four of each class
    assert len(DomainDataModule("digits").labels.evaluation("val")) == 4 * 10


def epochs(numbers):
    """The labelled batches of some epochs of the digits, four images a class."""
    loader = world.digits(8, shots=4).train_dataloader_for("labeled", Resizing(32))
    for number in numbers:
        loader.sampler.set_epoch(number)
        yield list(loader)


def test_transparent_and_turned_images_are_those_on_a_background_the_right_way_up(folder):
    odd, even, background = folder / "data", folder / "even", (0, 90, 200)
    shutil.copytree(odd, even)
    for number, path in enumerate(sorted(odd.glob("*/*/*.png"))):
        image = noise(9, 14, seed=number).convert("RGBA")
        image.putalpha(noise(9, 14, "L", seed=1000 + number))
        image.save(path, exif=tag(8))
        mixed = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
        upright = mixed.convert("RGB").transpose(Image.Transpose.ROTATE_90)
        upright.save(even / path.relative_to(odd))
    views = []
    for root, settings in ((odd, {"reading": ReadingOptions(background=background)}), (even, {})):
        module = in_folder(folder, root=str(root), augmentation="random_resized_crop", **settings)
        training = (module.train_dataloader_for(s, SQUARE) for s in ("labeled", "unlabeled"))
        measuring = (module.evaluation_dataloader_for(s, SQUARE) for s in ("val", "test"))
        images = [batch.images for loader in (*training, *measuring) for batch in loader]
        views.append([*images, module.preview(5, SQUARE), to_tensor(module.test_item(3)[1])])
    for odd_view, even_view in zip(*views, strict=True):
        # compositing rounds in two ways
        torch.testing.assert_close(odd_view, even_view, atol=2, rtol=0)


def test_epochs_differ_can_be_entered_anywhere_and_leave_torchs_global_stream_alone():
    before = torch.get_rng_state()
    first, second, third = epochs(range(3))
    (late,) = epochs([2])
    for batch, expected in zip(late, third, strict=True):
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
    assert not torch.equal(first[0].labels, second[0].labels)
    for batch in first:
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 32, 32), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((8,), torch.int64)
    list(world.digits(8).evaluation_dataloader_for("val", Resizing(32)))
    assert torch.equal(torch.get_rng_state(), before)


def test_preview_is_spread_over_the_unlabelled_images(folder):
    data = in_folder(folder)
    preview = data.preview(5, SQUARE)
    assert (preview.shape, preview.dtype) == ((5, 3, 8, 8), torch.uint8)
    chosen = [data.splits.open_image(data.splits.train[i].source) for i in (0, 6, 12, 18, 24)]
    assert preview.equal(torch.stack([to_tensor(resize_and_crop(i, SQUARE)) for i in chosen]))
    # four unlabelled images, and 30 training images
    shown = in_folder(folder, unlabeled=str(folder / "pool")).preview(99, SQUARE)
    assert len(shown) == 34
    assert shown[:4, 0, 0, 0].tolist() == [71, 72, 73, 74]
    # those that are distilled on
    assert len(in_folder(folder, unlabeled_share=0.5).preview(99, SQUARE)) == 15


def test_balanced_classes_take_part_equally_in_as_many_steps_and_each_view_is_another_one(folder):
    for i in range(1, 6):
        (folder / f"data/train/a/{i}.png").unlink()
    options = {"allow_fewer_shots": True, "shots": 6, "augmentation": "random_resized_crop"}
    plain, even = (
        in_folder(folder, balance_classes=balanced, batch_size=5, **options).train_dataloader_for(
            "labeled", SQUARE
        )
        for balanced in (False, True)
    )
    assert (len(plain), len(even), len(plain.dataset)) == (5, 5, 25)
    for epoch in range(3):
        even.sampler.set_epoch(epoch)
        labels = torch.cat([batch.labels for batch in even])
        assert Counter(labels.tolist()) == dict.fromkeys(range(5), 5)
    keys = [key for key in even.sampler if even.dataset.records[key[0]].label == 0]
    assert len({even.dataset.view.draw(Image.new("RGB", (10, 8)), *key) for key in keys}) == 5


def test_a_split_that_is_not_there_is_not_validated_on_and_not_tested_on(folder):
    (folder / "data/val").rename(folder / "data/later")
    probe = Probe()
    trainer(folder).fit(probe, datamodule=in_folder(folder))
    assert probe.train_batches
    assert not probe.val_batches
    (folder / "data/test").rename(folder / "data/later too")
    for use, split in ((trainer(folder).validate, "val"), (trainer(folder).test, "test")):
        with world.refused(DataError, rf"^dataset folder .*data has no {split} split: "):
            use(probe, datamodule=in_folder(folder))


def test_too_few_images_or_classes_are_refused_before_the_fit_begins(folder):
    probe = Probe()
    with world.refused(DataError, r"^class 'a' has 6 training images where shots asks for 16: "):
        trainer(folder).fit(probe, datamodule=in_folder(folder, shots=16))
    assert not hasattr(probe, "names_at_setup")
    fewer = in_folder(folder, shots=16, allow_fewer_shots=True)
    assert len(fewer.train_dataloader_for("labeled", SQUARE).dataset) == 30
    # distillation needs no labels, and so no shots
    trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, shots=16))

    loader = in_folder(folder).evaluation_dataloader_for
    with world.refused(ConfigError, r"15 test images for 16 processes: set trainer\.devices to 15"):
        loader("test", SQUARE, rank=0, world_size=16)
    assert len(loader("test", SQUARE, rank=14, world_size=15)) == 1

    (folder / "single/train").mkdir(parents=True)
    (folder / "data/train/a").rename(folder / "single/train/a")
    data = in_folder(folder, root=str(folder / "single"), protocol="base_to_novel")
    with world.refused(DataError, r"^dataset folder .* has one class, but protocol base_to_novel"):
        data.setup()


def test_with_0_shots_no_labelled_image_is_used_and_all_are_distilled_on(folder):
    data, probe = in_folder(folder, shots=0), Probe("unlabeled")
    trainer(folder).fit(probe, datamodule=data)
    # 30, less those of a short batch
    assert sum(len(batch.indices) for batch in probe.train_batches) == 24
    assert not probe.val_batches
    with world.refused(DataError, "shots is 0, so that no labelled image is used for validation"):
        trainer(folder).validate(probe, datamodule=data)
    for use in (lambda: trainer(folder).fit(Probe(), datamodule=data), data.labels.training):
        with world.refused(DataError, "shots is 0, so that no labelled image is used, but"):
            use()
    assert (data.splits.train, data.splits.val, len(data.splits.test)) == ((), (), 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset 'mnist' is unknown"),
        ({"dataset": "folder"}, "dataset 'folder' needs root"),
        ({"classes": ClassOptions(names="n.csv")}, r"remove classes\.names"),
        ({"dataset": Digits(), "root": "x"}, "dataset is a Digits, .*: remove root"),
        ({"protocol": "novel"}, "protocol 'novel' is unknown"),
        ({"unlabeled_share": 0.0}, "unlabeled_share must be above 0 and at most 1, not 0.0"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        DomainDataModule(**{"dataset": "digits", **options})
    with pytest.raises(ConfigError, match=r"reading\.test_share "):
        ReadingOptions(test_share=1.0)


def test_config_may_set_an_augmentation_up():
    augmentation = {"class_path": "LightAffine", "init_args": {"scale": [0.5, 2.0]}}
    built = build_data(
        [{"init_args": {"dataset": "digits", "augmentation": augmentation}}], ["--data.shots=null"]
    )
    assert built.augmentation.scale == (0.5, 2.0)
    assert built.shots is None

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
from kdpl.data.batches import LabeledBatch
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import build_data
from kdpl.data.options import ClassOptions, ReadingOptions
from kdpl.data.readers.digits import Digits
from kdpl.data.sampling import few_shot
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.resizing import Resizing

SQUARE = Resizing(8)


def digits(**options):
    return DomainDataModule(
        "digits", **{"num_workers": 0, "augmentation": "light_affine", **options}
    )


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
    own = {"root": str(folder / "data"), "num_workers": 0, "augmentation": "none", "shots": 4}
    return DomainDataModule("folder", **{**own, **options})


def trainer(folder, **options):
    return world.quiet_trainer(
        folder, **{"limit_val_batches": 1.0, "use_distributed_sampler": False, **options}
    )


def test_labelled_split_is_the_few_shot_sample_and_its_base_subset_and_unlabelled_all_training_images(
    folder,
):
    every, base = in_folder(folder, seed=3), in_folder(folder, seed=3, protocol="base_to_novel")
    assert (every.class_names, every.num_base, every.tuning_class_names) == (
        tuple("abcde"),
        None,
        tuple("abcde"),
    )
    assert (base.class_names, base.num_base, base.tuning_class_names) == (
        tuple("abcde"),
        3,
        tuple("abc"),
    )
    sample, _ = few_shot(every.splits.train, every.splits.val, 4, 4, 3)
    assert Counter(record.label for record in sample) == dict.fromkeys(range(5), 4)
    assert list(every.train_dataloader_for("labeled", SQUARE).dataset.records) == sample
    first = [record for record in sample if record.label < 3]
    assert list(base.train_dataloader_for("labeled", SQUARE).dataset.records) == first
    for datamodule in (every, base):
        unlabelled = datamodule.train_dataloader_for("unlabeled", SQUARE).dataset
        assert isinstance(unlabelled, UnlabeledImages)
        assert list(unlabelled.sources) == [record.source for record in every.splits.train], (
            "of all classes"
        )


def test_a_share_of_the_unlabelled_images_is_a_subset_that_the_seed_decides(folder):
    def sources(share, seed=1):
        datamodule = in_folder(folder, unlabeled_share=share, seed=seed)
        assert datamodule.preview(30, SQUARE).shape[0] == max(1, round(share * 30)), (
            "the start of prompts sees no others"
        )
        return list(datamodule.train_dataloader_for("unlabeled", SQUARE).dataset.sources)

    half = sources(0.5)
    assert len(half) == 15
    assert half == [source for source in sources(1.0) if source in half], "in the order of the list"
    assert half == sources(0.5) != sources(0.5, seed=2)


def test_validation_is_capped_and_test_is_not(folder):
    for options, count in (
        ({"val_shots": 4}, 4),
        ({"val_shots": None}, 5),
        ({"val_shots": 4, "shots": 2}, 2),
        ({"val_shots": 4, "protocol": "base_to_novel"}, 4),
    ):
        datamodule = in_folder(folder, **options)
        assert len(datamodule.evaluation_dataloader_for("val", SQUARE).dataset) == 5 * count
        assert len(datamodule.evaluation_dataloader_for("test", SQUARE).dataset) == 5 * 3


def test_without_val_shots_all_of_your_own_validation_images_are_taken_and_four_of_a_benchmark(
    folder,
):
    for own, count in ((in_folder(folder), 25), (DomainDataModule("digits", num_workers=0), 40)):
        assert len(own.labels.evaluation("val")) == count
    images, sampled = in_folder(folder).bounding_images()
    assert (images.tolist(), sampled) == ([*range(25)], False)
    for val_shots, sampled in ((4, True), (5, False)):
        own = in_folder(folder, shots=5, val_shots=val_shots)
        assert own.bounding_images()[1] is sampled


def test_evaluation_batches_are_in_order_and_drop_nothing(folder):
    datamodule = in_folder(folder, eval_batch_size=4)
    batches = list(datamodule.evaluation_dataloader_for("test", SQUARE))
    images, labels, indices = (
        torch.cat([getattr(batch, name) for batch in batches])
        for name in ("images", "labels", "indices")
    )
    assert indices.tolist() == list(range(15))
    assert labels.tolist() == [record.label for record in datamodule.splits.test]
    for i in range(15):
        source, image, label = datamodule.test_item(i)
        assert (source, label) == datamodule.splits.test[i]
        assert torch.equal(images[i], to_tensor(resize_and_crop(image, SQUARE)))


def epochs(split, numbers, **options):
    """The batches of some epochs of the digits, four images a class."""
    loader = digits(**{"shots": 4, **options}).train_dataloader_for(split, Resizing(32))
    for number in numbers:
        loader.sampler.set_epoch(number)
        yield list(loader)


def numbers(batch):
    return batch.labels if isinstance(batch, LabeledBatch) else batch.indices


def same_batches(some, others):
    pairs = zip(some, others, strict=True)
    return all(
        torch.equal(one.images, other.images) and numbers(one).equal(numbers(other))
        for one, other in pairs
    )


@pytest.mark.parametrize("background", [None, (0, 90, 200)])
def test_transparent_and_turned_images_are_those_on_a_background_the_right_way_up(
    background, folder
):
    odd, even = folder / "data", folder / "even"
    shutil.copytree(odd, even)
    for number, path in enumerate(sorted(odd.glob("*/*/*.png"))):
        image = noise(9, 14, seed=number).convert("RGBA")
        image.putalpha(noise(9, 14, "L", seed=1000 + number))
        image.save(path, exif=tag(8))
        on = Image.new("RGBA", image.size, background or "white")
        upright = (
            Image.alpha_composite(on, image).convert("RGB").transpose(Image.Transpose.ROTATE_90)
        )
        upright.save(even / path.relative_to(odd))
    views = []
    for root, settings in ((odd, {"reading": ReadingOptions(background=background)}), (even, {})):
        module = in_folder(folder, root=str(root), augmentation="random_resized_crop", **settings)
        training = [
            module.train_dataloader_for(split, SQUARE) for split in ("labeled", "unlabeled")
        ]
        loaders = [
            *training,
            *(module.evaluation_dataloader_for(split, SQUARE) for split in ("val", "test")),
        ]
        images = [batch.images for loader in loaders for batch in loader]
        views.append([*images, module.preview(5, SQUARE), to_tensor(module.test_item(3)[1])])
    for odd_view, even_view in zip(*views, strict=True):
        # compositing rounds in two ways
        torch.testing.assert_close(odd_view, even_view, atol=2, rtol=0)


@pytest.mark.parametrize("split", ["labeled", "unlabeled"])
def test_batches_are_the_same_for_any_number_of_workers(split):
    alone, helped = (list(itertools.chain(*epochs(split, range(2), num_workers=n))) for n in (0, 2))
    assert same_batches(alone, helped)
    for batch in alone:
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 32, 32), torch.uint8)
        assert (numbers(batch).shape, numbers(batch).dtype) == ((8,), torch.int64)


def test_epochs_differ_can_be_entered_anywhere_and_leave_torchs_global_stream_alone():
    before = torch.get_rng_state()
    first, second, third = epochs("labeled", range(3))
    (late,) = epochs("labeled", [2])
    assert same_batches(third, late)
    assert not torch.equal(first[0].labels, second[0].labels)
    list(digits(shots=4).evaluation_dataloader_for("val", Resizing(32)))
    assert torch.equal(torch.get_rng_state(), before)


def test_preview_is_spread_over_the_unlabelled_images(folder):
    datamodule = in_folder(folder)
    preview = datamodule.preview(5, SQUARE)
    assert (preview.shape, preview.dtype) == ((5, 3, 8, 8), torch.uint8)
    chosen = [
        datamodule.splits.open_image(datamodule.splits.train[i].source) for i in (0, 6, 12, 18, 24)
    ]
    assert torch.equal(
        preview, torch.stack([to_tensor(resize_and_crop(image, SQUARE)) for image in chosen])
    )
    # four unlabelled images, and 30 training images
    shown = in_folder(folder, unlabeled=str(folder / "pool")).preview(99, SQUARE)
    assert len(shown) == 34
    assert shown[:4, 0, 0, 0].tolist() == [71, 72, 73, 74]


def test_module_chooses_split_and_size_and_knows_the_names_at_setup(folder):
    probe = Probe("unlabeled", Resizing(6))
    trainer(folder, max_epochs=2).fit(probe, datamodule=in_folder(folder, batch_size=10))
    assert probe.names_at_setup == tuple("abcde")
    assert [batch.images.shape for batch in probe.train_batches] == [(10, 3, 6, 6)] * 2 * 3
    assert sorted(torch.cat([batch.indices for batch in probe.train_batches[:3]]).tolist()) == list(
        range(30)
    )
    assert sum(len(batch.indices) for batch in probe.val_batches) == 2 * 25


def test_balanced_classes_take_part_equally_in_as_many_steps_and_each_view_is_another_one(folder):
    for i in range(1, 6):
        (folder / f"data/train/a/{i}.png").unlink()
    options = {
        "allow_fewer_shots": True,
        "shots": 6,
        "batch_size": 5,
        "augmentation": "random_resized_crop",
    }
    plain, even = (
        in_folder(folder, balance_classes=on, **options).train_dataloader_for("labeled", SQUARE)
        for on in (0, 1)
    )
    assert (len(plain), len(even), len(plain.dataset)) == (5, 5, 25)
    for epoch in range(3):
        even.sampler.set_epoch(epoch)
        batches = list(even)
        assert Counter(torch.cat([batch.labels for batch in batches]).tolist()) == dict.fromkeys(
            range(5), 5
        )
    keys = [key for key in even.sampler if even.dataset.records[key[0]].label == 0]
    assert len({even.dataset.view.draw(Image.new("RGB", (10, 8)), *key) for key in keys}) == 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trainer_hands_the_epoch_on_also_after_a_resume(tmp_path, num_workers):
    def fit(max_epochs, ckpt_path=None):
        probe = Probe("labeled")
        fitted = trainer(tmp_path, max_epochs=max_epochs, limit_val_batches=0)
        fitted.fit(probe, datamodule=digits(shots=2, num_workers=num_workers), ckpt_path=ckpt_path)
        return fitted, probe

    expected = list(itertools.chain(*epochs("labeled", range(3), shots=2)))
    assert same_batches(fit(3)[1].train_batches, expected)
    stopped, _ = fit(1)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    _, resumed = fit(3, tmp_path / "stopped.ckpt")
    assert resumed.epochs == [1, 1, 2, 2]
    assert same_batches(resumed.train_batches, expected[2:])


def test_a_split_that_is_not_there_is_not_validated_on_and_not_tested_on(folder):
    (folder / "data/val").rename(folder / "data/later")
    probe = Probe()
    trainer(folder).fit(probe, datamodule=in_folder(folder))
    assert probe.train_batches
    assert not probe.val_batches
    (folder / "data/test").rename(folder / "data/later too")
    for use, split in ((trainer(folder).validate, "val"), (trainer(folder).test, "test")):
        with pytest.raises(
            DataError, match=rf"^dataset folder .*data has no {split} split: [^\n]*$"
        ):
            use(probe, datamodule=in_folder(folder))


def test_fewer_test_images_than_processes_are_refused(folder):
    with pytest.raises(
        ConfigError, match=r"has 15 test images for 16 processes: set trainer\.devices to 15"
    ):
        in_folder(folder).evaluation_dataloader_for("test", SQUARE, rank=0, world_size=16)
    assert (
        len(in_folder(folder).evaluation_dataloader_for("test", SQUARE, rank=14, world_size=15))
        == 1
    )


def test_fewer_images_than_shots_are_refused_before_the_fit_begins(folder):
    probe = Probe()
    with pytest.raises(
        DataError,
        match=r"^class 'a' has 6 training images where shots asks for 16: lower shots, or",
    ):
        trainer(folder).fit(probe, datamodule=in_folder(folder, shots=16))
    assert not hasattr(probe, "names_at_setup")
    fewer = in_folder(folder, shots=16, allow_fewer_shots=True)
    assert len(fewer.train_dataloader_for("labeled", SQUARE).dataset) == 30
    # distillation needs no labels, and so no shots
    trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, shots=16))


def test_with_0_shots_no_labelled_image_is_used_and_all_are_distilled_on(folder):
    for val_shots in (4, None):
        none, probe = in_folder(folder, shots=0, val_shots=val_shots), Probe("unlabeled")
        trainer(folder).fit(probe, datamodule=none)
        assert sum(len(batch.indices) for batch in probe.train_batches) == 24, (
            "30, less those of a short batch"
        )
        assert not probe.val_batches
    with world.refused(DataError, "shots is 0, so that no labelled image is used for validation"):
        trainer(folder).validate(probe, datamodule=none)
    for use in (lambda: trainer(folder).fit(Probe(), datamodule=none), none.labels.training):
        with world.refused(
            DataError, "shots is 0, so that no labelled image is used, but prompts and pool_filter"
        ):
            use()
    assert (none.splits.train, none.splits.val, len(none.splits.test)) == ((), (), 15)


def test_base_to_novel_needs_two_classes(folder):
    (folder / "single/train").mkdir(parents=True)
    (folder / "data/train/a").rename(folder / "single/train/a")
    datamodule = in_folder(folder, root=str(folder / "single"), protocol="base_to_novel")
    with pytest.raises(
        DataError, match=r"^dataset folder .* has one class, but protocol base_to_novel needs two"
    ):
        datamodule.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "mnist"},
            "dataset 'mnist' is unknown: choose one of .*, or give a Reader's class path",
        ),
        ({"dataset": "folder"}, "dataset 'folder' needs root: set it to where the dataset lies"),
        ({"root": "data"}, "dataset 'digits' takes no root: remove root: data"),
        (
            {"reading": ReadingOptions(background=(0, 0, 0))},
            "dataset 'digits' takes no background: remove data.init_args.reading.background: .0, 0, 0.",
        ),
        (
            {"classes": ClassOptions(names="n.csv")},
            "dataset 'digits' takes no class_names: remove data.init_args.classes.names: n.csv",
        ),
        (
            {"dataset": Digits(), "root": "x"},
            "dataset is a Digits, set by its init_args: remove root",
        ),
        ({"protocol": "novel"}, "protocol 'novel' is unknown: choose all or base_to_novel"),
        ({"unlabeled_share": 0.0}, "unlabeled_share must be above 0 and at most 1, not 0.0"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}[^\n]*$"):
        DomainDataModule(**{"dataset": "digits", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 1.0}, "reading.test_share must be at least 0 and below 1, not 1.0"),
        ({"bad_images": "ignore"}, "reading.bad_images 'ignore' is unknown: choose error or skip"),
    ],
)
def test_reading_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        ReadingOptions(**options)


def test_config_may_set_an_augmentation_up():
    augmentation = {"class_path": "LightAffine", "init_args": {"scale": [0.5, 2.0]}}
    built = build_data(
        [{"init_args": {"dataset": "digits", "augmentation": augmentation}}], ["--data.shots=null"]
    )
    assert built.augmentation.scale == (0.5, 2.0)
    assert built.shots is None

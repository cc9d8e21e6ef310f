import itertools
from collections import Counter

import pytest
import torch
import world
from lightning.pytorch import LightningModule
from own_reader import Stripes
from PIL import Image

from kdpl.data import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.sampling import few_shot
from kdpl.errors import ConfigError, DataError


def digits(**options):
    return DomainDataModule("digits", **{"num_workers": 0, "augmentation": "light_affine", **options})


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


class Probe(LightningModule):
    """Notes what it is given."""

    def __init__(self, train_split="labeled", image_size=32):
        super().__init__()
        self.train_split = train_split
        self.image_size = image_size
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": []}

    def setup(self, stage):
        self.names_at_setup = self.trainer.datamodule.class_names

    def training_step(self, batch):
        self.seen["train"].append((self.current_epoch, *batch))
        return self.weight.sum()

    def validation_step(self, batch):
        self.seen["val"].append(batch)

    def test_step(self, batch):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    return world.quiet_trainer(folder, **{"limit_val_batches": 1.0, "use_distributed_sampler": False, **options})


# what the protocols give


def test_names_under_both_protocols(folder):
    plain, split = in_folder(folder), in_folder(folder, protocol="base_to_novel")
    assert (plain.class_names, plain.num_base, plain.tuning_class_names) == (tuple("abcde"), None, tuple("abcde"))
    assert (split.class_names, split.num_base, split.tuning_class_names) == (tuple("abcde"), 3, tuple("abc"))


def test_labelled_split_is_the_few_shot_sample_and_the_base_subset_is_taken_after_it(folder):
    datamodule = in_folder(folder, seed=3)
    expected, _ = few_shot(datamodule.splits.train, datamodule.splits.val, 4, 4, 3)
    records = datamodule.train_dataloader_for("labeled", 8).dataset.records
    assert list(records) == expected
    assert Counter(record.label for record in records) == dict.fromkeys(range(5), 4)
    base = in_folder(folder, seed=3, protocol="base_to_novel").train_dataloader_for("labeled", 8).dataset.records
    assert list(base) == [record for record in expected if record.label < 3]


@pytest.mark.parametrize("protocol", ["all", "base_to_novel"])
def test_unlabelled_split_is_all_training_images_of_all_classes(folder, protocol):
    datamodule = in_folder(folder, protocol=protocol)
    dataset = datamodule.train_dataloader_for("unlabeled", 8).dataset
    assert isinstance(dataset, UnlabeledImages)
    assert list(dataset.sources) == [record.source for record in datamodule.splits.train]
    assert len(dataset) == 30


def test_a_share_of_the_unlabelled_images_is_a_subset_that_the_seed_decides(folder):
    def sources(share, seed=1):
        datamodule = in_folder(folder, unlabeled_share=share, seed=seed)
        assert datamodule.preview(30, 8).shape[0] == max(1, round(share * 30)), "the start of prompts sees no others"
        return list(datamodule.train_dataloader_for("unlabeled", 8).dataset.sources)

    assert [len(sources(share)) for share in (0.001, 0.1, 0.5)] == [1, 3, 15]
    half = sources(0.5)
    assert half == [source for source in sources(1.0) if source in half], "in the order of the list"
    assert half == sources(0.5) != sources(0.5, seed=2)
    assert set(sources(0.1)) < set(half), "a sweep over shares adds images and takes none away"


def test_validation_is_capped_and_test_is_not(folder):
    for options, count in (({}, 4), ({"val_shots": None}, 5), ({"shots": 2}, 2), ({"protocol": "base_to_novel"}, 4)):
        datamodule = in_folder(folder, **options)
        assert len(datamodule.val_dataloader_for(8).dataset) == 5 * count
        assert len(datamodule.test_dataloader_for(8).dataset) == 5 * 3


# what the batches are


def test_evaluation_batches_are_in_order_and_drop_nothing(folder):
    datamodule = in_folder(folder, eval_batch_size=4)
    batches = list(datamodule.test_dataloader_for(8))
    assert [len(images) for images, _, _ in batches] == [4, 4, 4, 3]
    images, labels, indices = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert indices.tolist() == list(range(15))
    assert labels.tolist() == [record.label for record in datamodule.test_records]
    for i in range(15):
        source, image, label = datamodule.test_item(i)
        assert (source, label) == datamodule.test_records[i]
        assert torch.equal(images[i], to_tensor(resize_and_crop(image, 8)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_images(folder, world_size):
    datamodule = in_folder(folder, batch_size=2)
    test = [datamodule.test_dataloader_for(8, rank, world_size) for rank in range(world_size)]
    assert sorted(torch.cat([batch[2] for loader in test for batch in loader]).tolist()) == list(range(15))
    train = [datamodule.train_dataloader_for("unlabeled", 8, rank, world_size) for rank in range(world_size)]
    assert len({len(loader) for loader in train}) == 1
    seen = torch.cat([batch[1] for loader in train for batch in loader]).tolist()
    assert len(seen) == len(set(seen)) == 30 // (2 * world_size) * 2 * world_size


def epochs(split, numbers, **options):
    """The batches of some epochs of the digits, four images a class."""
    loader = digits(**{"shots": 4, **options}).train_dataloader_for(split, 32)
    for number in numbers:
        loader.sampler.set_epoch(number)
        yield [tuple(batch) for batch in loader]


def same_batches(some, others):
    pairs = zip(itertools.chain(*some), itertools.chain(*others), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("split", ["labeled", "unlabeled"])
def test_batches_are_the_same_for_any_number_of_workers(split):
    alone, helped = (list(itertools.chain(*epochs(split, range(2), num_workers=n))) for n in (0, 2))
    assert same_batches(alone, helped)
    for images, numbers in alone:
        assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
        assert (numbers.shape, numbers.dtype) == ((8,), torch.int64)


def test_epochs_differ_can_be_entered_anywhere_and_leave_torchs_global_stream_alone():
    before = torch.get_rng_state()
    first, second, third = epochs("labeled", range(3))
    (late,) = epochs("labeled", [2])
    assert same_batches(third, late)
    assert not torch.equal(first[0][1], second[0][1])
    list(digits(shots=4).val_dataloader_for(32))
    assert torch.equal(torch.get_rng_state(), before)


def test_preview_is_spread_over_the_unlabelled_images(folder):
    datamodule = in_folder(folder)
    preview = datamodule.preview(5, 8)
    assert (preview.shape, preview.dtype) == ((5, 3, 8, 8), torch.uint8)
    chosen = [datamodule.splits.open_image(datamodule.splits.train[i].source) for i in (0, 6, 12, 18, 24)]
    assert torch.equal(preview, torch.stack([to_tensor(resize_and_crop(image, 8)) for image in chosen]))
    assert in_folder(folder, unlabeled=str(folder / "pool")).preview(9, 8)[:, 0, 0, 0].tolist() == [71, 72, 73, 74]


# under a trainer


def test_module_chooses_split_and_size_and_knows_the_names_at_setup(folder):
    probe = Probe("unlabeled", image_size=6)
    trainer(folder, max_epochs=2).fit(probe, datamodule=in_folder(folder, batch_size=10))
    assert probe.names_at_setup == tuple("abcde")
    assert len(probe.seen["train"]) == 2 * 3
    assert all(len(batch) == 3 and batch[1].shape == (10, 3, 6, 6) for batch in probe.seen["train"])
    assert sorted(torch.cat([batch[2] for batch in probe.seen["train"][:3]]).tolist()) == list(range(30))
    assert sum(len(batch[2]) for batch in probe.seen["val"]) == 2 * 20


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trainer_hands_the_epoch_on_also_after_a_resume(tmp_path, num_workers):
    def fit(max_epochs, ckpt_path=None):
        probe = Probe("labeled")
        fitted = trainer(tmp_path, max_epochs=max_epochs, limit_val_batches=0)
        fitted.fit(probe, datamodule=digits(shots=2, num_workers=num_workers), ckpt_path=ckpt_path)
        return fitted, probe.seen["train"]

    expected = list(itertools.chain(*epochs("labeled", range(3), shots=2)))
    stopped, first = fit(1)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    for seen in (fit(3)[1], first + fit(3, tmp_path / "stopped.ckpt")[1]):
        assert [epoch for epoch, *_ in seen] == [0, 0, 1, 1, 2, 2]
        assert same_batches([batch[1:] for batch in seen], expected)


def test_a_split_that_is_not_there_is_not_validated_on_and_not_tested_on(folder):
    (folder / "data/val").rename(folder / "data/later")
    probe = Probe()
    trainer(folder).fit(probe, datamodule=in_folder(folder))
    assert probe.seen["train"]
    assert not probe.seen["val"]
    (folder / "data/test").rename(folder / "data/later too")
    for use, split in ((trainer(folder).validate, "val"), (trainer(folder).test, "test")):
        with pytest.raises(DataError, match=rf"^dataset folder .*data has no {split} split: [^\n]*$"):
            use(probe, datamodule=in_folder(folder))
        with pytest.raises(DataError, match=f"no {split} split"):
            getattr(in_folder(folder), f"{split}_dataloader_for")(8)


def test_unreadable_image_ends_a_fit_with_one_sentence(folder):
    broken = folder / "data/train/c/3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with world.refused(DataError, rf"^image {broken} cannot be read \("):
        trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, num_workers=1, batch_size=30, scan=False))


def test_module_must_say_what_it_wants(folder):
    probe = Probe()
    del probe.image_size
    for module in (probe, Probe("test")):
        with pytest.raises(ConfigError, match=r"^Probe says too little for its data: give it a train_split of"):
            trainer(folder).fit(module, datamodule=in_folder(folder))


class NotingProbe(Probe):
    """Leaves what each process saw in a file."""

    def __init__(self, folder):
        super().__init__("unlabeled", image_size=8)
        self.folder = folder

    def on_fit_end(self):
        self.note("train", [batch[2].tolist() for batch in self.seen["train"]])

    def on_test_end(self):
        self.note("test", [batch[2].tolist() for batch in self.seen["test"]])

    def note(self, name, seen):
        torch.save(seen, self.folder / f"{name}{self.trainer.global_rank}.pt")

    def noted(self, name):
        return [torch.load(self.folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("sharded_twice", [False, True])
def test_two_processes_through_lightning_see_what_one_does(folder, sharded_twice):
    probe = NotingProbe(folder)
    two = {"devices": 2, "strategy": "ddp_fork", "limit_val_batches": 0, "use_distributed_sampler": sharded_twice}
    trainer(folder, **two).fit(probe, datamodule=in_folder(folder, batch_size=4))
    trainer(folder, **two).test(probe, datamodule=in_folder(folder))
    assert probe.noted("test") == [[[0, 2, 4, 6, 8, 10, 12, 14]], [[1, 3, 5, 7, 9, 11, 13]]]
    alone = in_folder(folder, batch_size=8).train_dataloader_for("unlabeled", 8)
    shared = [sorted(one + other) for one, other in zip(*probe.noted("train"), strict=True)]
    assert shared == [sorted(indices.tolist()) for _, indices in alone]


# what is refused


def test_fewer_test_images_than_processes_are_refused(folder):
    with pytest.raises(ConfigError, match=r"has 15 test images for 16 processes: set trainer\.devices to 15"):
        in_folder(folder).test_dataloader_for(8, rank=0, world_size=16)
    assert len(in_folder(folder).test_dataloader_for(8, rank=14, world_size=15)) == 1


def test_fewer_images_than_shots_are_refused_before_the_fit_begins(folder):
    probe = Probe()
    with pytest.raises(DataError, match=r"^class 'a' has 6 training images where shots asks for 16: lower shots, or"):
        trainer(folder).fit(probe, datamodule=in_folder(folder, shots=16))
    assert not hasattr(probe, "names_at_setup")
    fewer = in_folder(folder, shots=16, allow_fewer_shots=True)
    trainer(folder).fit(probe, datamodule=fewer)
    assert len(fewer.train_dataloader_for("labeled", 8).dataset) == 30
    # distillation needs no labels, and so no shots
    trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, shots=16))


def test_base_to_novel_needs_two_classes(folder):
    (folder / "single/train").mkdir(parents=True)
    (folder / "data/train/a").rename(folder / "single/train/a")
    datamodule = in_folder(folder, root=str(folder / "single"), protocol="base_to_novel")
    with pytest.raises(DataError, match=r"^dataset folder .* has one class, but protocol base_to_novel needs two"):
        datamodule.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset 'mnist' is unknown: choose one of .*, or give a Reader's class path"),
        ({"dataset": "folder"}, "dataset 'folder' needs root: set it to where the dataset lies"),
        ({"root": "data"}, "dataset 'digits' takes no root: remove root: data"),
        ({"unlabeled": "pool"}, "dataset 'digits' takes no unlabeled"),
        ({"dataset": "dtd", "root": "x", "class_names": "a.json"}, "dataset 'dtd' takes no class_names"),
        ({"dataset": Stripes(), "root": "x"}, "dataset is a Stripes with init_args of its own: remove root"),
        ({"protocol": "novel"}, "protocol 'novel' is unknown: choose all or base_to_novel"),
        ({"shots": 0}, "shots must be at least 1, not 0"),
        ({"val_shots": 0}, "val_shots must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"unlabeled_share": 0.0}, "unlabeled_share must be above 0 and at most 1, not 0.0"),
        ({"unlabeled_share": 1.5}, "unlabeled_share must be above 0 and at most 1, not 1.5"),
        ({"augmentation": "mixup"}, "augmentation 'mixup' is unknown"),
        ({"held_out": 0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"bad_images": "ignore"}, "bad_images"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}[^\n]*$"):
        DomainDataModule(**{"dataset": "digits", **options})


# construction from a config


def from_config(*arguments):
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    named = [f"--data.{argument}" for argument in arguments]
    return parser.instantiate_classes(parser.parse_args(["--data=kdpl.data.DomainDataModule", *named])).data


def test_config_may_set_an_augmentation_up():
    built = from_config("dataset=digits", "shots=null", "augmentation=LightAffine", "augmentation.scale=[0.5,2.0]")
    assert built.augmentation.scale == (0.5, 2.0)
    assert built.shots is None


def test_config_may_name_a_reader_of_ones_own_by_its_class_path():
    built = from_config("dataset=own_reader.Stripes", "dataset.shades=20")
    assert built.dataset == "own_reader.Stripes"
    assert built.class_names == ("red", "blue")
    assert len(built.train_dataloader_for("labeled", 8).dataset) == 32

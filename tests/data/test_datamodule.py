import itertools
import subprocess
import sys
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
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
    for split, count in (("train", 6), ("val", 5), ("test", 3)):
        for name in ("e", "d", "c", "b", "a"):
            for i in range(count):
                path = tmp_path / "data" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (10, 8), (next(shades),) * 3).save(path)
    (tmp_path / "pool").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (200 + i,) * 3).save(tmp_path / "pool" / f"{i}.png")
    return tmp_path


def in_folder(folder, **options):
    return DomainDataModule(
        "folder", root=str(folder / "data"), **{"num_workers": 0, "augmentation": "none", "shots": 4, **options}
    )


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


def trainer(tmp_path, **options):
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            **options,
        }
    )


# what the protocols give


def test_names_under_both_protocols(folder):
    plain, split = in_folder(folder), in_folder(folder, protocol="base_to_novel")
    assert (plain.class_names, plain.num_base, plain.tuning_class_names) == (tuple("abcde"), None, tuple("abcde"))
    assert (split.class_names, split.num_base, split.tuning_class_names) == (tuple("abcde"), 3, tuple("abc"))


def test_labelled_split_is_the_few_shot_sample(folder):
    datamodule = in_folder(folder, seed=3)
    expected, _ = few_shot(datamodule.splits.train, datamodule.splits.val, 4, 4, 3)
    dataset = datamodule.train_dataloader_for("labeled", 8).dataset
    assert list(dataset.records) == expected
    assert Counter(record.label for record in dataset.records) == dict.fromkeys(range(5), 4)


def test_base_subset_is_taken_after_the_sample(folder):
    every = in_folder(folder).train_dataloader_for("labeled", 8).dataset.records
    base = in_folder(folder, protocol="base_to_novel").train_dataloader_for("labeled", 8).dataset.records
    assert list(base) == [record for record in every if record.label < 3]


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

    every = sources(1.0)
    assert [len(sources(share)) for share in (0.001, 0.1, 0.5)] == [1, 3, 15]
    half = sources(0.5)
    assert half == [source for source in every if source in half], "in the order of the list"
    assert half == sources(0.5)
    assert half != sources(0.5, seed=2)
    assert set(sources(0.1)) < set(half), "a sweep over shares adds images and takes none away"


def test_validation_is_capped_and_test_is_not(folder):
    datamodule = in_folder(folder, protocol="base_to_novel")
    assert len(datamodule.val_dataloader_for(8).dataset) == 5 * 4
    assert len(in_folder(folder, val_shots=None).val_dataloader_for(8).dataset) == 5 * 5
    assert len(in_folder(folder, shots=2).val_dataloader_for(8).dataset) == 5 * 2
    assert len(datamodule.test_dataloader_for(8).dataset) == 5 * 3


# what the batches are


def test_training_batches():
    images, labels = next(iter(digits().train_dataloader_for("labeled", 32)))
    assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
    assert (labels.shape, labels.dtype) == ((8,), torch.int64)
    batch = next(iter(digits().train_dataloader_for("unlabeled", 32)))
    assert len(batch) == 2
    assert batch[0].shape == (8, 3, 32, 32)
    assert batch[1].dtype == torch.int64


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


def epochs(datamodule, split, numbers):
    loader = datamodule.train_dataloader_for(split, 32)
    for number in numbers:
        loader.sampler.set_epoch(number)
        yield [tuple(batch) for batch in loader]


@pytest.mark.parametrize("split", ["labeled", "unlabeled"])
def test_batches_are_the_same_for_any_number_of_workers(split):
    alone, helped = (list(epochs(digits(num_workers=n, shots=4), split, range(2))) for n in (0, 2))
    for one, two in zip(alone, helped, strict=True):
        for (x, y), (u, v) in zip(one, two, strict=True):
            assert torch.equal(x, u)
            assert torch.equal(y, v)


def test_epochs_differ_and_can_be_entered_anywhere():
    first, second, third = epochs(digits(shots=4), "labeled", range(3))
    (late,) = epochs(digits(shots=4), "labeled", [2])
    assert all(torch.equal(a, b) for one, two in zip(third, late, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[0][1], second[0][1])


def test_loaders_leave_torchs_global_stream_alone():
    datamodule = digits(shots=4)
    before = torch.get_rng_state()
    list(datamodule.train_dataloader_for("labeled", 32))
    list(datamodule.val_dataloader_for(32))
    assert torch.equal(torch.get_rng_state(), before)


def test_preview_is_spread_over_the_unlabelled_images(folder):
    datamodule = in_folder(folder)
    preview = datamodule.preview(5, 8)
    assert (preview.shape, preview.dtype) == ((5, 3, 8, 8), torch.uint8)
    chosen = [datamodule.splits.open_image(datamodule.splits.train[i].source) for i in (0, 6, 12, 18, 24)]
    assert torch.equal(preview, torch.stack([to_tensor(resize_and_crop(image, 8)) for image in chosen]))
    assert in_folder(folder, unlabeled=str(folder / "pool")).preview(9, 8)[:, 0, 0, 0].tolist() == [200, 201, 202, 203]


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

    _, straight = fit(3)
    stopped, _ = fit(1)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    _, resumed = fit(3, tmp_path / "stopped.ckpt")
    assert [batch[0] for batch in resumed] == [1, 1, 2, 2]
    for one, two in zip(straight[2:], resumed, strict=True):
        assert torch.equal(one[1], two[1])
        assert torch.equal(one[2], two[2])
    expected = [batch for batches in epochs(digits(shots=2), "labeled", range(3)) for batch in batches]
    assert all(torch.equal(one[1], two[0]) for one, two in zip(straight, expected, strict=True))


def test_validation_is_skipped_where_there_is_no_such_split(folder):
    for path in sorted((folder / "data/val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "data/val").rmdir()
    probe = Probe()
    trainer(folder).fit(probe, datamodule=in_folder(folder))
    assert probe.seen["train"]
    assert not probe.seen["val"]
    with pytest.raises(DataError, match=r"^dataset folder .*data has no val split: [^\n]*$"):
        trainer(folder).validate(probe, datamodule=in_folder(folder))


def test_evaluation_of_a_split_that_is_not_there_is_refused(folder):
    (folder / "data/test").rename(folder / "data/later")
    with pytest.raises(DataError, match=r"^dataset folder .*data has no test split: [^\n]*$"):
        trainer(folder).test(Probe(), datamodule=in_folder(folder))
    with pytest.raises(DataError, match="no test split"):
        in_folder(folder).test_dataloader_for(8)
    (folder / "data/val").rename(folder / "data/later too")
    with pytest.raises(DataError, match="no val split"):
        in_folder(folder).val_dataloader_for(8)


def test_unreadable_image_ends_a_fit_with_one_sentence(folder):
    broken = folder / "data/train/c/3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError) as raised:
        trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, num_workers=1, batch_size=30, scan=False))
    assert str(raised.value).startswith(f"image {broken} cannot be read (")
    assert "\n" not in str(raised.value)


def test_module_must_say_what_it_wants(folder):
    probe = Probe()
    del probe.image_size
    for module in (probe, Probe("test")):
        with pytest.raises(
            ConfigError, match=r"^Probe says too little for its data: give it a train_split of labeled or"
        ):
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


def test_fewer_test_images_than_processes_are_refused(folder):
    with pytest.raises(ConfigError, match=r"has 15 test images for 16 processes: set trainer\.devices to 15"):
        in_folder(folder).test_dataloader_for(8, rank=0, world_size=16)
    assert len(in_folder(folder).test_dataloader_for(8, rank=14, world_size=15)) == 1


# what is refused


def test_fewer_images_than_shots_are_refused_before_the_fit_begins(folder):
    probe = Probe()
    with pytest.raises(DataError, match=r"^class 'a' has 6 training images where shots asks for 16: lower shots, or"):
        trainer(folder).fit(probe, datamodule=in_folder(folder, shots=16))
    assert not hasattr(probe, "names_at_setup")
    trainer(folder).fit(probe, datamodule=in_folder(folder, shots=16, allow_fewer_shots=True))
    assert len(in_folder(folder, shots=16, allow_fewer_shots=True).train_dataloader_for("labeled", 8).dataset) == 30
    # distillation needs no labels, and so no shots
    trainer(folder).fit(Probe("unlabeled"), datamodule=in_folder(folder, shots=16))


def test_base_to_novel_needs_two_classes(tmp_path):
    path = tmp_path / "train/cat/1.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)
    datamodule = DomainDataModule("folder", root=str(tmp_path), protocol="base_to_novel", shots=1)
    with pytest.raises(DataError, match=r"^dataset folder .* has one class, but protocol base_to_novel needs two"):
        datamodule.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset 'mnist' is unknown"),
        ({"dataset": "folder"}, "dataset 'folder' needs root"),
        ({"root": "data"}, "dataset 'digits' takes no root"),
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
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}[^\n]*$"):
        DomainDataModule(**{"dataset": "digits", **options})


# construction from a config


def test_config_may_set_an_augmentation_up():
    built = from_config(
        "--data=kdpl.data.DomainDataModule",
        "--data.dataset=digits",
        "--data.shots=null",
        "--data.augmentation=LightAffine",
        "--data.augmentation.scale=[0.5,2.0]",
    )
    assert built.augmentation.scale == (0.5, 2.0)
    assert built.shots is None


def test_config_may_name_a_reader_of_ones_own_by_its_class_path():
    arguments = ["--data=kdpl.data.DomainDataModule", "--data.dataset=own_reader.Stripes"]
    built = from_config(*arguments, "--data.dataset.shades=20")
    assert built.dataset == "own_reader.Stripes"
    assert built.class_names == ("red", "blue")
    assert len(built.train_dataloader_for("labeled", 8).dataset) == 32
    with pytest.raises(ConfigError, match="dataset is a Stripes with init_args of its own: remove root"):
        DomainDataModule(Stripes(), root="x")


def from_config(*arguments):
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate_classes(parser.parse_args(list(arguments))).data


def test_reading_happens_once(folder, monkeypatch):
    datamodule = in_folder(folder)
    datamodule.setup("fit")
    first = datamodule.splits
    monkeypatch.setattr("kdpl.data.readers.folder.Folder.read", None)
    datamodule.setup("test")
    assert datamodule.splits is first


@pytest.mark.slow
def test_data_knows_nothing_of_models():
    models = ("open_clip", "kdpl.clip.loading", "kdpl.teacher", "kdpl.student")
    code = f"import sys, kdpl.data.datamodule; print([name for name in sys.modules if name.startswith({models})])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"

"""All that kdpl reads of strangers: a small whole file of each kind, and its reader."""

import json
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
import world
from fuzz.target import Target
from runs import noise
from shard_files import write_shard

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip.loading import ClipConfig, load_clip
from kdpl.clip.torch_files import read_torch_file, read_torchscript
from kdpl.data.archive import unpack
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.class_mapping import name_classes
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.decoding import open_image
from kdpl.data.feature_cache import FeatureCache, Manifest, fill
from kdpl.data.readers.benchmark import BENCHMARKS, Location
from kdpl.data.readers.layouts import read_split_file
from kdpl.data.readers.shards import index_shards
from kdpl.data.readers.table import Table
from kdpl.deploy.sources import read_items
from kdpl.errors import DataError
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.prompts.tuned import TunedPrompts
from kdpl.report.run_folder import Stage
from kdpl.runtime.logit_sketch import FILE as SKETCH_FILE
from kdpl.runtime.logit_sketch import LogitSketch
from kdpl.runtime.predictions import PREDICTIONS_FILE, RESULTS_FILE, ImagePrediction, write_predictions, write_results

_TABLE = (
    "image,label,split\na.png,cat,\nb.png,cat,test\nc.png,dog,train\nd.png,dog,val\ne.png,,\nhttps://h/f.png,dog,\n"
)
_NAMES = {"a": "cat", "b": {"name": "dog", "text": "a dog"}}
_KEYS = tuple(_NAMES)
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def build(folder: Path) -> dict[str, Target]:
    """Write whole files into a folder, and give their readers by name."""
    torch.manual_seed(0)
    world.register()
    return {
        **_artifacts(folder),
        **_cache(folder / "cache"),
        **_results(folder),
        **_names_and_lists(folder),
        **_archives(folder),
        **_images(folder),
    }


def _artifacts(folder: Path) -> dict[str, Target]:
    vectors = world.frozen_vectors()
    vectors.save(folder / "vectors.safetensors")
    world.tuned_prompts({"vision_prompts.tokens": torch.randn(2, 3, 48)}).save(folder / "prompts.safetensors")
    clip = load_clip(ClipConfig("test-student", world.TAG))
    student = StudentEncoder(clip.image_tower, 2, 2, vectors.vectors.shape[1])
    Classifier(student, vectors, clip.logit_scale, clip.identity).save(folder / "classifier")
    torch.save({"a": torch.ones(3), "b": [1, "x"], "c": {"d": torch.zeros(2, 2)}}, folder / "published.pt")
    torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(2, 3)), torch.ones(1, 2)).save(str(folder / "scripted.pt"))
    return {
        "class vectors": Target("vectors.safetensors", _read_vectors),
        "tuned prompts": Target("prompts.safetensors", TunedPrompts.load),
        "classifier's settings": Target("classifier/classifier.json", lambda file: Classifier.load(file.parent)),
        "classifier's weights": Target("classifier/model.safetensors", lambda file: Classifier.load(file.parent)),
        "published checkpoint": Target("published.pt", read_torch_file),
        "OpenAI's weights": Target("scripted.pt", read_torchscript),
    }


def _read_vectors(file: Path) -> None:
    ClassVectors.load(file).require_names(world.NAMES, "the data")


def _cache(folder: Path) -> dict[str, Target]:
    images = UnlabeledImages(["1", "2"], RandomView(lambda _: noise(9, 7), RandomResizedCrop(), 8, 1))
    needed = Manifest.of(
        teacher="t" * 32,
        width=6,
        dataset="folder",
        sources=images.sources,
        image_size=8,
        augmentation=RandomResizedCrop(),
        view_seed=1,
        views=3,
    )
    fill(folder, needed, images, lambda batch: torch.randn(len(batch), 6), batch_size=4, num_workers=0)

    def read(_: Path) -> None:
        cache = FeatureCache.open(folder, needed)
        for index in range(2):
            for view in range(cache.manifest.views):
                cache.read(view, index)

    return {
        "cache's manifest": Target(f"{folder.name}/manifest.json", read),
        "cache's features": Target(f"{folder.name}/shard-00000.npy", read),
    }


def _results(folder: Path) -> dict[str, Target]:
    LogitSketch.of(torch.randn(6, 5)).save(folder)
    predictions = [ImagePrediction(i, f"{i}.png", "cat", "dog", 0.5) for i in range(5)]
    write_predictions(folder, predictions)
    write_results(folder, len(predictions), {"test/acc": 0.5, "test/base_acc": 0.25})
    return {
        "sketch of logits": Target(SKETCH_FILE, lambda file: LogitSketch.load(file.parent).confidences()),
        "test's predictions": Target(PREDICTIONS_FILE, lambda file: Stage(file.parent).predictions),
        "test's accuracies": Target(RESULTS_FILE, lambda file: Stage(file.parent).results),
    }


def _names_and_lists(folder: Path) -> dict[str, Target]:
    (folder / "names.json").write_text(json.dumps(_NAMES))
    (folder / "names.csv").write_text("label,name,text\na,cat,\nb,dog,a dog\n")
    (folder / "table.csv").write_text(_TABLE)
    location = Location(BENCHMARKS["dtd"], folder)
    location.images.mkdir(parents=True)
    lists = {
        split: [[f"{name}/{i}.jpg", label, name] for label, name in enumerate(world.NAMES) for i in range(2)]
        for split in ("train", "val", "test")
    }
    location.index.write_text(json.dumps(lists))
    return {
        "class names (JSON)": Target("names.json", lambda file: name_classes(_KEYS, str(file), None)),
        "class names (CSV)": Target("names.csv", lambda file: name_classes(_KEYS, str(file), None)),
        "table": Target("table.csv", lambda file: Table(str(file)).read()),
        "split file": Target(str(location.index.relative_to(folder)), lambda _: read_split_file(location)),
    }


def _archives(folder: Path) -> dict[str, Target]:
    # a long name, and one beyond ASCII, have headers of their own
    names = ("d/0.png", f"d/é{'x' * 120}.png", "d/2.txt")
    targets = {}
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")):
        write_shard(folder / f"shard.{ending}", range(3), mode)
        with tarfile.open(folder / f"data.{ending}", mode, format=tarfile.PAX_FORMAT) as archive:
            for name in names:
                archive.add(folder / "table.csv", name)
        targets[f"archive ({ending})"] = Target(f"data.{ending}", _unpack)
        targets[f"shard to classify ({ending})"] = Target(f"shard.{ending}", _read_shard)
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / "table.csv", name)
    targets["archive (zip)"] = Target("data.zip", _unpack)
    targets["shard to train on"] = Target("shard.tar", _read_members)
    return targets


def _unpack(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack(file, Path(folder) / "out", lambda _: False)


def _read_shard(file: Path) -> None:
    faults = []
    for item in read_items([str(file)]):
        try:
            item.open()
        except DataError as error:
            faults.append(error)
    # each is a row of a table, which goes on behind it
    if faults:
        raise faults[0]


def _read_members(file: Path) -> None:
    for member in index_shards([str(file)]):
        open_image(member, member.read())


def _images(folder: Path) -> dict[str, Target]:
    targets = {}
    for kind in _IMAGE_FORMATS:
        name = f"image.{kind.lower()}"
        noise(9, 7).save(folder / name, kind)
        targets[f"image ({kind})"] = Target(name, _open)
    return targets


def _open(file: Path) -> None:
    open_image(str(file))

"""Frozen networks encode a fit's images before its first step, and the features are stored."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from kdpl import __version__
from kdpl.clip import ClipIdentity, Preprocessing
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.domain import domain_of
from kdpl.data.names import Indices, Names
from kdpl.runtime.files import write_json
from kdpl.runtime.origin import Origin, as_json, digest
from kdpl.runtime.resizing import Resizing
from kdpl.targets.engine import Engine, chosen_engine, on_openvino
from kdpl.targets.processes import Processes, processes_of
from kdpl.targets.store import FeatureStore, Work, images_per_shard

PREPARED_FOLDER = "prepared"
"""Folder in a teacher's run folder: features and targets for later fits; safe to remove."""

ORIGIN_FILE = "made_from.json"

_VIEW_SEED = 1  # the run's seed would make new views, and so new features, for each run

Encoder = Callable[[Tensor], Tensor]
"""Encodes images uint8 [B, 3, S, S] into features [B, D]."""


def folder_name(origin: Origin) -> str:
    """Return the name of the folder of what fits of one origin share."""
    # other versions may compute something else
    return digest([__version__, json.dumps(as_json(origin))])


class Network(NamedTuple):
    """Frozen network whose features are stored.

    Attributes:
        identity: What tells its weights from others.
        clip: Its CLIP, whose activation is no weight.
        preprocessing: Its preprocessing of images.
        module: Holds its weights.
        encode: Encodes images; not called where all features are stored.
    """

    identity: Mapping[str, Any]
    clip: ClipIdentity
    preprocessing: Preprocessing
    module: nn.Module
    encode: Encoder


@dataclass(frozen=True, eq=False)
class Encoding:
    """Encodes images before the first step of a fit.

    All processes call its methods together: each does its share, and all get the whole result.

    Attributes:
        features_folder: Folder of stored features, for any number of runs.
        engine: What runs the networks of these features.
        view: Random views of images for a tower's resizing.
        views_origin: Settings that views depend on beside their image and the resizing.
        files_of: Describes images besides their paths; None stands for all unlabelled images.
        batch_size: Number of views that are encoded at a time.
        num_workers: Number of worker processes that load images.
        precision: The trainer's precision.
        autocast: Context in which networks run in that precision.
        device: Device of this process.
        processes: The processes of the fit.
    """

    features_folder: Path
    engine: Engine
    view: Callable[[Resizing], RandomView]
    views_origin: Mapping[str, Any]
    files_of: Callable[[Sequence[str] | None], Mapping[str, str]]
    batch_size: int
    num_workers: int
    precision: str
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    processes: Processes

    def work(
        self, images: UnlabeledImages, encode: Encoder, still: bool = False, mean: bool = False
    ) -> Work:
        """Return this process's share in computing features of images."""
        processes = self.processes.rank, self.processes.world_size
        return Work(images, encode, self.batch_size, self.num_workers, *processes, still, mean)

    def store(
        self,
        network: Network,
        images: Sequence[str],
        views: int,
        mean: bool = False,
        indices: Indices | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> FeatureStore:
        """Return a network's features of images, complete, [N, V, D]; computed where they lack.

        Args:
            network: The network.
            images: Sources of the images.
            views: Views V of each image, the first as in evaluation, and the others random.
            mean: Store the evaluation view and the mean over views instead, [N, 2, D].
            indices: Numbers of the images that their views are drawn by; None: their positions.
            files: Origin of the images, where it is known.
        """
        # everything that the features depend on
        resizing = network.preprocessing.resizing
        view = replace(self.view(resizing), seed=_VIEW_SEED)
        dataset = UnlabeledImages(Names.of(images), view, indices)
        pixels = len(dataset) * views * resizing.image_size**2
        engine = chosen_engine(self.engine, pixels, self.device, self.precision)
        origin = {
            **network.identity,
            **({"engine": engine} if engine != "torch" else {}),
            **(files or {"images": digest(images), **self.files_of(images)}),
            "views": "one as in evaluation, and "
            + ("their mean with " if mean else "")
            + f"{views - 1} random ones",
            "quick_gelu": network.clip.quick_gelu,
            "preprocessing": asdict(network.preprocessing),
            "precision": self.precision,
            **self.views_origin,
            "seed": _VIEW_SEED,
        }

        # compute missing shards
        per_shard = images_per_shard(len(dataset), views)
        folder = self.features_folder / folder_name(origin)
        store = FeatureStore(folder, len(dataset), per_shard)
        if self.processes.agree(lambda: store.missing):
            file = store.folder / ORIGIN_FILE
            self.processes.on_first(lambda: write_json(file, as_json(origin)))
            encode = network.encode
            if engine == "openvino":
                size = resizing.image_size
                encode = on_openvino(network.module, encode, self.batch_size, size)
            # another run that does the same writes the same files
            store.fill(views, self.work(dataset, encode, still=True, mean=mean))
            self.processes.wait()
        return store


def encoding_of(trainer: Trainer, features_folder: Path, engine: Engine) -> Encoding:
    """Return the encoding of a trainer's fit."""
    data = domain_of(trainer)
    return Encoding(
        features_folder=features_folder,
        engine=engine,
        view=data.view,
        views_origin=data.views_origin,
        files_of=data.files_of,
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        precision=str(trainer.precision),
        autocast=trainer.precision_plugin.forward_context,
        device=trainer.strategy.root_device,
        processes=processes_of(trainer),
    )

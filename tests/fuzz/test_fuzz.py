"""Mutated files of every kind that kdpl reads from untrusted sources: each is read, or refused in one sentence.

``FUZZ_INPUTS`` says how many files of each kind are tried.
"""

import os
import random
import zipfile

import pytest
import torch
import world
from runs import noise

from kdpl.benchmark.download import unpack
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import Unknown
from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.decoding import open_image
from kdpl.data.readers.table import Table
from kdpl.errors import KdplError
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.prompts.tuned import TunedPrompts
from kdpl.targets.refinement.pool_targets import Moved, PoolTargets

INPUTS = int(os.environ.get("FUZZ_INPUTS", "100"))
PIECES = (
    *(b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"true", b"9" * 30, b"[" * 2000),
    *(b'""', b"\\ud800", b"../", b"\n", b",", b'"', b"\xff\xfe", b"\0"),
    *(b"\xe2\x80\xae", b"\x1b[2J"),
)
READERS = {
    "vectors.safetensors": ClassVectors.load,
    "prompts.safetensors": TunedPrompts.load,
    "classifier/classifier.json": lambda file: Classifier.load(file.parent),
    "classifier/model.safetensors": lambda file: Classifier.load(file.parent),
    HeldOutScores.file: lambda file: HeldOutScores.read(file.parent, "ab").set_threshold(0.5),
    Unknown.file: lambda file: Unknown.read(file.parent, "ab", 24),
    "targets.safetensors": PoolTargets.load,
    "names.csv": lambda file: read_class_mapping(file, ["a", "b"]),
    "table.csv": lambda file: Table(str(file)).read(),
    "image.png": lambda file: open_image(str(file)),
    "image.jpeg": lambda file: open_image(str(file)),
    "data.zip": lambda file: unpack(file, file.parent / "out", lambda _: False),
}
"""Readers by the file that they read."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip_of):
    """A folder with an intact file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    vectors, clip = world.frozen_vectors(), clip_of("test-student")
    vectors.save(folder / "vectors.safetensors")
    world.tuned_prompts({"vision_prompts.tokens": torch.randn(2, 3, 48)}).save(
        folder / "prompts.safetensors"
    )
    encoder = StudentEncoder(clip.image_tower, 2, 2, vectors.vectors.shape[1])
    Classifier(encoder, vectors, clip.logit_scale, clip.identity).save(folder / "classifier")
    HeldOutScores.of(torch.randn(6, 5), torch.arange(6) % 5).save(folder, "ab")
    features = torch.nn.functional.normalize(torch.randn(30, 24), dim=1)
    Unknown.fit(features, vectors.vectors, 17.0, negatives=features[:2], words=("sun", "sky")).save(
        folder, "ab"
    )
    counts = {"before": (2, 1), "after": (1, 2), "moved": 1, "accuracy": (0.5, 0.75)}
    ties = {"made_from": {"teachers": ["t"], "seed": 1}, "class_names": ("a", "b")}
    pool = {"images": torch.arange(3), "assignments": torch.full((3, 2), 0.5)}
    targets = {**counts, **ties, **pool, "examples": (Moved(7, 0, 1),), "taken": True}
    PoolTargets(**targets, reason="taken").save(folder / "targets.safetensors")
    (folder / "names.csv").write_text("label,name,text\na,cat,\nb,dog,a dog\n")
    (folder / "table.csv").write_text(
        "image,label,split\na.png,cat,\nb.png,cat,test\nc.png,dog,train\n"
    )
    for ending in ("png", "jpeg"):
        noise(9, 7).save(folder / f"image.{ending}")
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "table.csv", "d/é.csv")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_sentence(name, folder, tmp_path):
    intact, draw = (folder / name).read_bytes(), random.Random(name)  # noqa: S311
    READERS[name](folder / name)
    refusals = 0
    for number in range(INPUTS):
        content = mutate(intact, draw)
        (folder / name).write_bytes(content)
        try:
            READERS[name](folder / name)
        except KdplError as error:
            refusals += 1
            assert "\n" not in str(error), f"input {number}: {error}"  # noqa: PT017 - many are refused, not all
        except OSError:  # a place that no file has, as a full disk has none
            refusals += 1
        finally:
            (folder / name).write_bytes(intact)
    assert refusals > INPUTS / 20


def mutate(content, draw):
    """Change a file at some bytes, mostly near its beginning or its end."""
    if draw.random() < 0.05:
        return content[: draw.randrange(len(content))]
    mutated = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(len(mutated), draw.choice((16, 600, len(mutated)))))
        at = len(mutated) - 1 - at if draw.random() < 0.2 else at
        piece = draw.choice((*PIECES, bytes([draw.randrange(256)])))
        mutated[at : at + draw.choice((0, 1, len(piece)))] = piece
    return bytes(mutated)

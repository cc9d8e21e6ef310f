"""``python -m benchmarks.students``: parameters, disk and images/s of students with random weights, in torch and ONNX.

Time is processor time, so that other programs on the machine do not count; the fastest of several
turns is shown.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.classifier.export import INPUT
from kdpl.classifier.formats.onnx import write_onnx
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.messages import quiet_libraries

STUDENTS = (
    "ViT-B-16-quickgelu", "ViT-B-32-quickgelu", "RN50-quickgelu", "MobileCLIP-S1", "timm:mobilenetv4_conv_small",
    "timm:resnet18", "timm:fastvit_t8", "timm:efficientnet_b0",
)  # fmt: skip
CLASSES, WIDTH = 100, 768  # of class vectors, as a ViT-L/14 teacher's
PROMPTS, DEPTH = 4, 9


def _classifier(model: str) -> Classifier:
    clip = load_image_clip(ClipConfig(model, "random"))
    vectors = ClassVectors(
        vectors=nn.functional.normalize(torch.randn(CLASSES, WIDTH), dim=1),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        num_base=None,
        clip=clip.identity,
        logit_scale=100.0,
        context=None,
        preprocessing=clip.preprocessing,
        teacher="none",
    )
    depth = DEPTH if model.startswith("ViT") else 0
    return Classifier(
        StudentEncoder(clip.image_tower, PROMPTS, depth, WIDTH), vectors, 100.0, clip.identity
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Build the students, time them in turns, and print a table with ratios to the first one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students", description=main.__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--student",
        action="append",
        help="name of the model; may be repeated; default: eight of them",
    )
    options = parser.parse_args(argv)
    students = options.student or STUDENTS
    quiet_libraries()
    about: dict[str, str] = {}
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        for model in students:
            classifier, folder = _classifier(model), Path(scratch) / model
            classifier.save(folder)
            disk = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            parameters = (
                sum(each.numel() for each in classifier.encoder.tower.module.visual.parameters())
                / 1e6
            )
            size = classifier.preprocessing.image_size
            images = torch.randint(256, (options.batch, 3, size, size), dtype=torch.uint8)
            write_onnx(classifier, "uint8", folder / "c.onnx")
            session = onnxruntime.InferenceSession(folder / "c.onnx", session_options)
            runs[model] = (
                torch.no_grad()(lambda c=classifier, x=images: c(x)),
                lambda s=session, x=images: s.run(None, {INPUT: x.numpy()}),
            )
            print(f"built {model}", file=sys.stderr, flush=True)
            about[model] = f"| {model} | {size} | {parameters:.1f} M | {disk:.0f} MB |"
        best = {(model, way): float("inf") for model in runs for way in (0, 1)}
        for _ in range(options.turns):
            for model, way in best:
                start = time.process_time()
                runs[model][way]()
                best[model, way] = min(best[model, way], time.process_time() - start)
    base = [best[students[0], way] for way in (0, 1)]
    print("| student | pixels | image tower | disk | torch, images/s | | ONNX, images/s | |")
    for model, text in about.items():
        rates = [
            f"{options.batch / best[model, way]:.1f} | {base[way] / best[model, way]:.1f} ×"
            for way in (0, 1)
        ]
        print(text, " | ".join(rates), "|")


if __name__ == "__main__":
    main()

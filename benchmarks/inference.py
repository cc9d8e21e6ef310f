"""From image files to class names: kdpl's classifiers, and zero-shot classification by open_clip."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.distillation import begun_student
from benchmarks.photographs import write_photographs
from benchmarks.settings import Settings
from benchmarks.teacher import RandomTeacher, random_weights_are_meant
from kdpl.classifier.export import INPUT
from kdpl.classifier.formats.onnx import write_onnx
from kdpl.classifier.formats.onnx_files import write_int8_onnx
from kdpl.clip import RANDOM, ClipConfig, ImageClip, load_image_clip

CLASSIFIER, ONNX, ONNX_INT8 = "Classifier", "ONNX, float32", "ONNX, 8 bits"
OPEN_CLIP_TEACHER, OPEN_CLIP_STUDENT = "open_clip, the teacher", "open_clip, the student's tower"

_CALIBRATION_IMAGES = 8


class Inference:
    """Top-1 predictions for JPEG files, on all sides.

    Text features are computed beforehand. Weights are random, which makes the predictions
    meaningless but does not affect the times.

    Args:
        settings: Models, number of classes, threads, device and batch size.
        folder: An empty folder to work in.

    Attributes:
        sides: Function of each side that classifies all files and returns the class names.
        towers: Image towers of open_clip's sides.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.paths = write_photographs(folder / "photographs", settings.sizes.infer_images)
        names = settings.sizes.names(settings.sizes.few)
        teacher = RandomTeacher(settings.sizes)
        student = begun_student(settings.sizes, names, teacher)
        self.classifier = student.classifier().to(settings.torch_device)
        whole, quantized = folder / "classifier.onnx", folder / "int8.onnx"
        write_onnx(student.classifier(), "uint8", whole)
        some = [
            self.classifier.prepare(Image.open(path)) for path in self.paths[:_CALIBRATION_IMAGES]
        ]
        write_int8_onnx(student.classifier(), "uint8", quantized, torch.stack(some))
        with random_weights_are_meant():
            small = load_image_clip(ClipConfig(settings.sizes.student, RANDOM))
        clips: dict[str, ImageClip] = {OPEN_CLIP_TEACHER: teacher.clip, OPEN_CLIP_STUDENT: small}
        self.towers: dict[str, nn.Module] = {
            side: clip.image_tower.visual for side, clip in clips.items()
        }
        self.sides: dict[str, Callable[[], list[str]]] = {
            CLASSIFIER: self._classify,
            ONNX: partial(self._run_onnx, self._session(whole)),
            ONNX_INT8: partial(self._run_onnx, self._session(quantized)),
            **{side: self._zero_shot(clip, names) for side, clip in clips.items()},
        }

    def _batches(self) -> list[list[Path]]:
        size = self.settings.batch_size
        return [self.paths[start : start + size] for start in range(0, len(self.paths), size)]

    def _classify(self) -> list[str]:
        guesses = self.classifier.predict(
            self.paths, batch_size=self.settings.batch_size, precision=self.settings.precision
        )
        return [first.class_name for (first,) in guesses]

    def _session(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _run_onnx(self, session: Any) -> list[str]:
        labels: list[int] = []
        for paths in self._batches():
            images = torch.stack([self.classifier.prepare(Image.open(path)) for path in paths])
            labels += np.argmax(
                session.run(["logits"], {INPUT: images.numpy()})[0], axis=1
            ).tolist()
        return [self.classifier.class_names[label] for label in labels]

    def _zero_shot(self, clip: ImageClip, names: Sequence[str]) -> Callable[[], list[str]]:
        """Return the loop of open_clip's documentation, with its image tower and preprocessing."""
        device, preprocessing = self.settings.torch_device, clip.preprocessing
        size, mean, std = preprocessing.image_size, preprocessing.mean, preprocessing.std
        transform = cast(
            Callable[[Image.Image], Tensor], open_clip.image_transform(size, False, mean, std)
        )
        visual: nn.Module = clip.image_tower.visual.to(device).eval()
        width = visual(torch.zeros(1, 3, size, size, device=device)).shape[1]
        text_features = F.normalize(torch.randn(len(names), width, device=device), dim=-1)

        @torch.inference_mode()
        def run() -> list[str]:
            labels: list[int] = []
            for paths in self._batches():
                images = torch.stack([transform(Image.open(path)) for path in paths]).to(device)
                features = F.normalize(visual(images), dim=-1)
                labels += (100 * features @ text_features.T).softmax(dim=-1).argmax(dim=-1).tolist()
            return [names[label] for label in labels]

        return run

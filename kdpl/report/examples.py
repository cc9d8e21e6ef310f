"""Test images on which teacher and student disagree, small enough to stand in the report."""

import base64
from dataclasses import dataclass
from io import BytesIO

from PIL.Image import Image

from kdpl.errors import ArtifactError, DataError
from kdpl.report.run_folder import Run
from kdpl.runtime.disagreements import Pair, find_disagreements
from kdpl.runtime.predictions import Answer

MAX_IMAGES = 30
_EDGE = 112


@dataclass(frozen=True)
class Example:
    """A test image with both answers.

    Attributes:
        teacher: The teacher's answer.
        student: The student's answer.
        uri: The image as a data URI, at most 112 pixels wide and high.
        width: Its width in pixels.
        height: Its height.
    """

    teacher: Answer
    student: Answer
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Examples:
    """Where teacher and student disagree.

    Attributes:
        disagreements: On how many test images.
        images: Of how many.
        only_teacher: Where the teacher alone is right.
        only_student: Where the student alone is right.
        neither: Where both are wrong, in different ways.
        shown: Some of them, of each of the three kinds.
        gap: Why some or all images are not shown.
    """

    disagreements: int
    images: int
    only_teacher: int
    only_student: int
    neither: int
    shown: list[Example]
    gap: str | None


def find_examples(run: Run) -> Examples:
    """Count disagreements and show some, spread evenly over the three kinds and over the test images.

    Raises:
        ArtifactError: Teacher and student were not both tested on the same images.
    """
    pairs = run.answers_side_by_side
    found = find_disagreements(pairs)
    shown, gap = _show(run, found.some(MAX_IMAGES))
    only_teacher, only_student, neither = (len(kind) for kind in found)
    differing = only_teacher + only_student + neither
    return Examples(differing, len(pairs), only_teacher, only_student, neither, shown, gap)


def _show(run: Run, pairs: list[Pair]) -> tuple[list[Example], str | None]:
    try:
        data = run.require_tested_images()
    except (ArtifactError, DataError) as error:
        return [], str(error)
    shown, gap = [], None
    for teacher, student in pairs:
        try:
            image = data.test_item(student.index)[1]
        except (DataError, OSError) as error:
            gap = str(error)
            continue
        uri, width, height = thumbnail(image)
        shown.append(Example(teacher, student, uri, width, height))
    return shown, gap


def thumbnail(image: Image) -> tuple[str, int, int]:
    """Give an image as a data URI, PNG or JPEG, whichever is smaller, with its width and height."""
    small = image.convert("RGB")
    small.thumbnail((_EDGE, _EDGE))
    encoded = []
    for kind in ("jpeg", "png"):
        buffer = BytesIO()
        small.save(buffer, kind, quality=80, optimize=True)
        encoded.append((kind, buffer.getvalue()))
    kind, data = min(encoded, key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", small.width, small.height

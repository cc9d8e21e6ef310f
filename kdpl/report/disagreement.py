"""Test images on which teacher and student disagree, as thumbnails within the page."""

import base64
from io import BytesIO
from typing import Any

from PIL.Image import Image

from kdpl.errors import KdplError
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import disagreements, spread

MAX_IMAGES = 30
_EDGE = 112


def find_examples(run: Run) -> dict[str, Any]:
    """Count disagreements and choose examples, evenly over who is correct and over the test images.

    Raises:
        ArtifactError: Teacher and student were not both tested on the same images.
    """
    kinds = disagreements(run.pairs)
    chosen = [pair for kind in kinds for pair in spread(kind, MAX_IMAGES // len(kinds))]
    shown, gap = [], None
    try:
        read = run.tested_data().test_item
    except KdplError as error:
        chosen, gap = [], str(error)
    for teacher, student in chosen:
        try:
            shown.append({"teacher": teacher, "student": student, **thumbnail(read(student.index)[1])})
        except (KdplError, OSError) as error:
            gap = str(error)
    only_teacher, only_student, neither = map(len, kinds)
    return {
        "disagreements": only_teacher + only_student + neither,
        "images": len(run.pairs),
        "only_teacher": only_teacher,
        "only_student": only_student,
        "neither": neither,
        "shown": shown,
        "gap": gap,
    }


def thumbnail(image: Image) -> dict[str, Any]:
    """Return a data URI of an image, with width and height in pixels."""
    small = image.convert("RGB")
    small.thumbnail((_EDGE, _EDGE))
    buffer = BytesIO()
    small.save(buffer, "webp", quality=80)
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "width": small.width, "height": small.height}

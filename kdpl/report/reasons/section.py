"""Report section on what predictions rest on."""

from pathlib import Path
from typing import Any

from kdpl.errors import ArtifactError
from kdpl.report.accuracy import thumbnail
from kdpl.report.page import Section
from kdpl.report.reasons.pictures import nearest_labelled, picture
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import spread

NUM_IMAGES = 4
"""Number of wrong images, and of right ones."""


def reasons(run: Run) -> list[dict[str, Any]]:
    """Draw some wrong and some right test images, with maps of the predicted and the true class."""
    if run.student is None:
        raise ArtifactError("there is no student: heat maps need a classifier")
    predictions, data, shown = run.student.predictions, run.tested_data(), []
    nearest = nearest_labelled(run.classifier, data)
    # some wrong ones, then some right ones
    kinds = ([p for p in predictions if p.correct is right] for right in (False, True))
    for tested in (p for kind in kinds for p in spread(kind, NUM_IMAGES)):
        image = data.test_item(tested.index)[1]
        captions: dict[str | None, str] = {tested.label: f"{tested.label}\nthe true class"}
        # the same class where the prediction is right
        captions[tested.prediction] = f"{tested.prediction}\n{100 * tested.probability:.0f} %"
        near = nearest(run.classifier.embed([image])[0])
        sheet = picture(run.classifier, image, captions, near)
        shown.append({"image": tested, **thumbnail(sheet, sheet.width)})
    return shown


_TEMPLATE = Path(__file__).parent / "reasons.html.jinja"
SECTION = Section("What predictions rest on", reasons, _TEMPLATE, "disagreement")

"""The report's section of what predictions rest on: entry point of ``kdpl.report``."""

from pathlib import Path
from typing import Any

from kdpl.errors import ArtifactError
from kdpl.report.accuracy import thumbnail
from kdpl.report.page import Section
from kdpl.report.reasons.pictures import nearest_labelled, picture
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import spread

EACH = 4
"""Number of wrong and of right images."""


def reasons(run: Run) -> list[dict[str, Any]]:
    """Draw some wrong and some right test images, with maps of the predicted and the true class."""
    if run.student is None:
        raise ArtifactError("there is no student: heat maps are those of a classifier")
    predictions, data, shown = run.student.predictions, run.tested_data(), []
    nearest = nearest_labelled(run.classifier, data)
    kinds = ([each for each in predictions if each.correct is right] for right in (False, True))
    for each in (prediction for kind in kinds for prediction in spread(kind, EACH)):
        image = data.test_item(each.index)[1]
        captions: dict[str | None, str] = {each.label: f"{each.label}\nthe true class"}
        captions[each.prediction] = f"{each.prediction}\n{100 * each.probability:.0f} %"
        near = nearest(run.classifier.embed([image])[0])
        sheet = picture(run.classifier, image, captions, near)
        shown.append({"image": each, **thumbnail(sheet, sheet.width)})
    return shown


_TEMPLATE = Path(__file__).parent / "reasons.html.jinja"
SECTION = Section("What predictions rest on", reasons, _TEMPLATE, "disagreement")

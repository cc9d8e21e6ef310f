"""Options of ``predict`` that draw what predictions rest on; imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeObserver, Observer
from kdpl.errors import ConfigError

if TYPE_CHECKING:
    from kdpl.classifier import Classifier


def options(*, explain: str | None = None, explain_class: str | None = None) -> MakeObserver:
    """Read the options; named in the plugin's ``observe``.

    Args:
        explain: folder for a PNG of each image: a heat map of what speaks for each predicted class,
            and the most similar labelled images of the run
        explain_class: class of the heat map, instead of the predicted classes
    """
    if explain is None:
        raise ConfigError("--explain-class needs a folder for pictures: give --explain FOLDER")

    def make(classifier: "Classifier", folder: Path) -> Observer:
        from kdpl.report.reasons.pictures import explainer

        return explainer(classifier, folder, Path(explain), explain_class)

    return make

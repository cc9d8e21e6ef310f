"""Explanations of predictions: heat maps, and the nearest labelled images; imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeObserver, Observer
from kdpl.errors import ConfigError
from kdpl.runtime.optional import lazily

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.report.reasons.heat import heat_map

__all__ = ["heat_map", "options"]

__getattr__ = lazily(__name__, {"heat": ["heat_map"]})


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

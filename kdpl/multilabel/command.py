"""``python -m kdpl thresholds``, and the option ``--threshold`` of ``predict`` and ``serve``."""

from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule, require_file
from kdpl.errors import ConfigError
from kdpl.runtime.advice import command
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule


def thresholds(
    classifier: str, images: str, *, label_separator: str = ";", class_names: str | None = None
) -> int:
    """Choose for each class the least probability for which it is named, on labelled images.

    These thresholds replace the ones in the classifier's folder, chosen for the best F1 on the
    run's validation images. Give images that the classifier was not trained on.

    Args:
        classifier: classifier folder of a student's run, of several labels an image
        images: .csv table of one split with the columns image and label
        label_separator: character between the labels of an image
        class_names: file with the names of the classes if the table's labels differ, as for init
    """
    # check the options before torch is imported
    require_classifier(Path(classifier))
    require_file("--class-names", class_names)

    from kdpl.classifier.bulk import load_classifier
    from kdpl.classifier.folder import keep_task
    from kdpl.confidence.labeled import encode_records, labeled_records
    from kdpl.multilabel.metrics import choose_thresholds, class_scores
    from kdpl.multilabel.task import MultiLabel

    loaded = load_classifier(classifier, None, "auto")
    names, task = loaded.class_names, loaded.task
    if not isinstance(task, MultiLabel):
        words: list[str | Path] = ["--class-names", Path(class_names)] if class_names else []
        raise ConfigError(
            f"{classifier} names one class for each image and needs no thresholds of classes: "
            f"run {command('calibrate', Path(classifier), Path(images), *words)}"
        )
    records = labeled_records(images, class_names, names, label_separator)
    features, targets = encode_records(loaded, records)
    logits = loaded.cpu().logits(features)

    # a class that no image has keeps its threshold
    having = {label for record in records for label in record.labels}
    before, chosen = task.thresholds_of(len(names)), choose_thresholds(logits, targets)
    values = [value if label in having else before[label] for label, value in enumerate(chosen)]
    keep_task(Path(classifier), MultiLabel(values).settings())

    scores = class_scores(logits, targets, values)
    print("class, threshold, images, precision, recall, F1 on these images:")
    for label, name in enumerate(names):
        shown = ", ".join(scores.cells(label, digits=3)[1:])
        print(f"  {name}: {values[label]:.4f}, {int(scores.positives[label])}, {shown}")
        if label not in having:
            print("    no held-out image has it: its threshold is as it was")
    return 0


def options(*, threshold: float | None = None) -> MakeRule:
    """Read the options.

    Args:
        threshold: with several labels an image, the least probability for which any class is named,
            instead of the classifier's threshold of each class; 0 names all classes
    """

    def rule_of(classifier: "Classifier") -> "DecisionRule":
        from kdpl.tasks import DecisionRule

        if threshold is None or not 0 <= threshold <= 1:
            raise ConfigError(
                f"--threshold is {threshold}, expected a number from 0 to 1: give one"
            )
        if not classifier.task.per_class:
            raise ConfigError(
                "--threshold is for several labels an image, and this classifier names one class: "
                "reject images by --max-error"
            )
        return DecisionRule(threshold=threshold)

    return rule_of

"""``python -m kdpl thresholds CLASSIFIER TABLE``: choose the threshold of each class anew."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import require_file, share
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from kdpl.data.splits import Record


def thresholds(
    classifier: str,
    images: str,
    *,
    label_separator: str = ";",
    class_names: str | None = None,
    precision: str | None = None,
    recall: str | None = None,
    confidence: str = "95%",
    batch_size: PositiveInt = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Choose the probability from which on an image has a class, of each class, on labelled images.

    They replace those in the classifier's folder, which are of the best F1 on the run's validation
    images. Give images that the classifier was not trained on.

    Args:
        classifier: classifier folder of a student's run, of several labels an image
        images: .csv or .parquet table with the columns image and label, and of one split
        label_separator: character between the labels of an image
        class_names: file with the names of the classes, where labels are named otherwise, as for
            init
        precision: wanted share of an image's named classes that are right, such as 90%, for each
            class; by default F1 is as large as possible
        recall: wanted share of the images of a class for which it is named, for each class
        confidence: probability, over draws of the images, with which that is kept
        batch_size: images per batch
        device: auto is a GPU if there is one
    """
    from kdpl.multilabel.thresholds import Wanted

    require_classifier(Path(classifier))
    require_file("--class-names", class_names)
    if precision is not None and recall is not None:
        raise ConfigError(
            "--precision and --recall each decide the thresholds alone: give one of the two"
        )
    certain = share("--confidence", confidence)
    wanted = Wanted(share("--precision", precision), share("--recall", recall), certain or 0.95)

    import torch

    from kdpl.classifier.bulk import load_classifier
    from kdpl.classifier.folder import keep_task
    from kdpl.data.splits import labels_of
    from kdpl.doubt.held_out import classify_records
    from kdpl.multilabel.metrics import class_scores
    from kdpl.multilabel.task import MultiLabel
    from kdpl.multilabel.thresholds import choose

    loaded = load_classifier(classifier, None, device)
    names, task = loaded.class_names, loaded.task
    if not isinstance(task, MultiLabel):
        raise ConfigError(
            f"{classifier} names one class for each image and needs no thresholds of classes: "
            "run python -m kdpl calibrate"
        )
    records = _labeled(images, label_separator, class_names, names)

    logits, targets = (each.cpu() for each in classify_records(loaded, records, batch_size))

    # a class that no image has keeps its threshold
    having = {label for record in records for label in labels_of(record)}
    before, chosen = task.thresholds_of(len(names)), choose(logits, targets, wanted)
    values = [each.value if label in having else before[label] for label, each in enumerate(chosen)]
    keep_task(Path(classifier), MultiLabel(values).settings())

    scores = class_scores(logits, targets, values)
    measured = torch.stack(scores[2:], dim=1).tolist()
    print("class, threshold, images, precision, recall, F1 on these images:")
    for label, (name, numbers) in enumerate(zip(names, measured, strict=True)):
        shown = ", ".join("" if number != number else f"{number:.3f}" for number in numbers)
        print(f"  {name}: {values[label]:.4f}, {int(scores.positives[label])}, {shown}")
        if problem := chosen[label].problem:
            print(f"    {problem}{'' if label in having else ': its threshold is as it was'}")
    return 0


def _labeled(
    images: str, separator: str, class_names: str | None, names: tuple[str, ...]
) -> "list[Record]":
    """Labelled images of a table's one split, with labels of the classifier."""
    from kdpl.data.class_mapping import read_class_mapping
    from kdpl.data.readers.registry import build_reader
    from kdpl.data.splits import Record, labels_of

    # held-out images may have one label each
    options = {"root": images, "label_separator": separator, "any_labels": True}
    splits = build_reader("table", **options).read()
    parts = [part for part in (splits.train, splits.val, splits.test) if part]
    if len(parts) > 1:
        raise DataError(
            f"{images} has several splits, of which the classifier has seen one: give the images "
            "of another"
        )
    keys, numbers = splits.class_names, {name: number for number, name in enumerate(names)}
    given = read_class_mapping(Path(class_names), keys, complete=False) if class_names else {}
    named = [given[key].name if given else key for key in keys]
    if unknown := sorted({*named} - numbers.keys()):
        raise DataError(
            f"{images} has the class {unknown[0]!r}, which the classifier does not have: leave it "
            "out, or give its name by --class-names"
        )
    own = [numbers[name] for name in named]
    return [
        Record(record.source, tuple(sorted(own[label] for label in labels_of(record))))
        for record in parts[0]
    ]

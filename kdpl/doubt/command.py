"""``python -m kdpl calibrate CLASSIFIER IMAGES``: score labelled images.

The scores are those by which predict knows its certainty.
"""

from pathlib import Path

from kdpl.runtime.run_folder import require_classifier


def calibrate(
    classifier: str,
    images: str,
    *,
    class_names: str | None = None,
) -> int:
    """Score labelled images that a classifier was not trained on; keep the scores in its folder.

    They replace those of the run's validation images. predict --max-error, --sets and --calibrated
    rest on them.

    Args:
        classifier: classifier folder of a student's run
        images: folder with a folder of images for each class, named as the class, or a .csv or
            .parquet table with the columns image and label
        class_names: file with the names of the classes, where folders or labels are named
            otherwise, as for init
    """
    from kdpl.data.class_mapping import read_class_mapping
    from kdpl.data.splits import Record
    from kdpl.errors import DataError

    require_classifier(Path(classifier))
    labeled = _labeled(Path(images).expanduser())
    keys = {label for _, label in labeled}
    names = read_class_mapping(Path(class_names), keys) if class_names is not None else {}
    named = {key: names[key].name if names else key for key in keys}

    from kdpl.classifier.bulk import load_classifier
    from kdpl.doubt.held_out import HeldOutScores, classify_records
    from kdpl.tasks import require_one_class

    loaded = load_classifier(classifier, None, "auto")
    require_one_class(loaded.task.name, "calibrate")
    numbers = {name: number for number, name in enumerate(loaded.class_names)}
    if unknown := sorted({*named.values()} - numbers.keys()):
        raise DataError(
            f"{images} has the class {unknown[0]!r}, which the classifier does not have: leave it "
            "out, or give its name by --class-names"
        )
    records = [Record(source, numbers[named[label]]) for source, label in labeled]
    logits, labels = classify_records(loaded, records)
    scores = HeldOutScores.of(logits, labels)
    digest = loaded.fingerprint()
    scores.save(Path(classifier), digest)
    for companion in loaded.companions.values():
        if (again := companion.calibrated(logits, labels)) is not None:
            again.save(Path(classifier), digest)
    accuracy = float(scores.correct.float().mean())
    print(f"{len(scores)} images: accuracy {accuracy:.1%}, temperature {scores.temperature:.3g}")
    return 0


def _labeled(images: Path) -> list[tuple[str, str]]:
    """Labelled images, with their labels, of a folder of class folders or of a table."""
    from kdpl.data.readers.folder import class_folders, split_folders
    from kdpl.data.readers.registry import build_reader
    from kdpl.data.storage import find_images
    from kdpl.errors import DataError
    from kdpl.runtime.class_names import composed

    if images.is_dir():
        folders, several = class_folders(images), bool(split_folders(images))
        labeled = [(path, composed(each.name)) for each in folders for path in find_images(each)]
    else:
        splits = build_reader("table", root=str(images)).read()
        records = [part for part in (splits.train, splits.val, splits.test) if part]
        labeled = [
            (record.source, splits.class_names[record.single])
            for part in records
            for record in part
        ]
        several = len(records) > 1
    if several:
        raise DataError(
            f"{images} has several splits, of which the classifier has seen one: give the images "
            "of another"
        )
    if not labeled:
        raise DataError(
            f"folder {images} has no images in folders of classes: put them into {images}/<class>/"
        )
    return labeled

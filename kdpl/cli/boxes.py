"""``python -m kdpl boxes DETECTIONS``: list or classify the boxes of a detector."""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import Rule, output_file, require_file, share
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import write_rows, write_text
from kdpl.runtime.run_folder import require_classifier


def boxes(
    detections: str,
    *,
    out: str,
    classifier: str | None = None,
    folder: str | None = None,
    only: list[str] = [],  # noqa: B006 - read from the signature, never changed
    margin: str | None = None,
    min_confidence: float = 0.2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: PositiveInt | None = None,
    rule: Rule,
) -> int:
    """List the boxes of a detector as images, or classify them.

    With --classifier, OUT is COCO's JSON with the class of each box and its probability. If
    interrupted, the same command resumes.

    Args:
        detections: JSON of MegaDetector, SpeciesNet or COCO
        out: a .txt list for a pool or predict; a .csv table with the columns image, label (the
            category of COCO, empty for detectors) and group (the photo); or with --classifier .json
        classifier: classifier folder of a student's run
        folder: folder of the images, by default the folder of DETECTIONS
        only: category of the boxes to take, such as animal; by default all
        margin: share of a box's width and height to add at each side, such as 10%
        min_confidence: least confidence of the detector; labels of COCO have 1
        device: auto is a GPU if there is one
        workers: threads that decode, one for each processor core if not given
        rule: options that plugins add, such as rejection
    """
    require_file("DETECTIONS", detections)
    file = output_file("--out", out)
    if file.suffix not in ((".txt", ".csv") if classifier is None else (".json",)):
        how = ".txt or .csv" if classifier is None else ".json, as --classifier is given"
        raise ConfigError(f"--out {out} has an unknown ending, expected {how}: give another")
    if classifier is not None:
        require_classifier(Path(classifier))

    # imports torch, so only after the checks of paths
    from kdpl.classifier.detections import read_detections, write_coco
    from kdpl.data.boxes.crops import name_of

    # select by confidence and category
    detected = read_detections(Path(detections), folder)
    selected = [
        box
        for box in detected
        if box.confidence >= min_confidence and (not only or box.category in only)
    ]
    if not selected:
        categories = ", ".join(sorted({box.category for box in detected})) or "none"
        raise DataError(
            f"{detections} has no such box among {len(detected)}, whose categories are "
            f"{categories}: lower --min-confidence, or correct --only"
        )
    print(f"{len(selected)} of {len(detected)} boxes", file=sys.stderr)
    names = [name_of(box.image, box.box, share("--margin", margin) or 0) for box in selected]

    # classify the boxes, or list them
    if classifier is not None:
        from kdpl.classifier import PredictOptions
        from kdpl.classifier.bulk import BulkPrediction, load_classifier

        loaded = load_classifier(classifier, None, device)
        write = partial(write_coco, detections=selected)
        options = PredictOptions(workers=workers, rule=rule.of(loaded))
        bulk = BulkPrediction(loaded, names, options, write_rows=write)
        if "class" not in bulk.columns:
            raise ConfigError(
                f"{classifier} names several classes for an image, expected one: list the boxes in "
                "a .txt, and give it to predict"
            )
        bulk.write(file)
    elif file.suffix == ".txt":
        write_text(file, "".join(f"{name}\n" for name in names))
    else:
        rows = [(name, box.label, box.image) for name, box in zip(names, selected, strict=True)]
        write_rows(file, [("image", "label", "group"), *rows])
    return 0

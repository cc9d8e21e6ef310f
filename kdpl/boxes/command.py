"""``python -m kdpl boxes DETECTIONS``: boxes of a detector as images, or classified."""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import Rule, output_file, require_file, share
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import write_rows, write_text
from kdpl.runtime.run_folder import require_classifier

_SHOWN = 10


def boxes(
    detections: str,
    *,
    out: str,
    classifier: str | None = None,
    folder: str | None = None,
    only: list[str] = [],  # noqa: B006 - read from the signature, never changed
    margin: str | None = None,
    min_confidence: float = 0.2,
    top_k: PositiveInt = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: PositiveInt | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    rule: Rule,
) -> int:
    """List the boxes of a detector as images of their own, or classify them.

    With --classifier, OUT is the file of DETECTIONS again, with predictions beside the boxes. If
    interrupted, the same command resumes. The last options are those of predict.

    Args:
        detections: JSON of MegaDetector, SpeciesNet or COCO
        out: a .txt list for a pool or predict; a .csv table with the columns image, label (the
            category of COCO, empty for detectors) and group (the photo); or with --classifier .json
        classifier: classifier folder of a student's run
        folder: folder or URL of the images, by default that of DETECTIONS
        only: category of the boxes to take, such as animal; by default all
        margin: share of a box's width and height that is added at each side, such as 10%
        min_confidence: least confidence of the detector; labels of COCO have 1
        top_k: classes for each box
        device: auto is a GPU if there is one
        workers: threads that decode, one for each processor core if not given
        precision: bf16-mixed and 16-mixed run the image tower in half precision
        rule: what rooms add as options, such as rejection
    """
    require_file("DETECTIONS", detections)
    endings = (".txt", ".csv") if classifier is None else (".json",)
    file = output_file("--out", out)
    if file.suffix not in endings:
        how = "without --classifier" if classifier is None else "with --classifier"
        raise ConfigError(
            f"--out {out} is not {' or '.join(endings)}, as it is {how}: give another"
        )
    if classifier is not None:
        require_classifier(Path(classifier))

    # imports torch, which takes seconds
    from kdpl.boxes.detections import Detections

    content = Detections.read(Path(detections), folder)
    known = {found.category for found in content.boxes}
    if unknown := [name for name in only if name not in known]:
        some = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"--only {unknown[0]} is no category in {detections} ({some}): correct it"
        )
    chosen, faults = content.choose(share("--margin", margin) or 0, min_confidence, only)
    for fault in faults[:_SHOWN]:
        print(f"left out: the box of {fault}", file=sys.stderr)
    print(
        f"{len(content.boxes)} boxes: {len(chosen)} taken, {len(faults)} left out as empty or "
        "outside of their images",
        file=sys.stderr,
    )
    if not chosen:
        raise DataError(f"{detections} has no box to take: lower --min-confidence, or widen --only")

    names = [name for name, _ in chosen]
    if classifier is not None:
        from kdpl.classifier.bulk import BulkPrediction, load_classifier
        from kdpl.tasks import DecisionRule

        loaded = load_classifier(classifier, None, device)
        write = partial(content.write_rows, found=[found for _, found in chosen])
        if "class" not in loaded.task.columns(top_k, DecisionRule()):
            raise ConfigError(
                f"{classifier} names several classes for an image, expected one: list the boxes in "
                "a .txt, and give it to predict"
            )
        settings = (top_k, 64, workers, precision, rule.of(loaded, top_k))
        BulkPrediction(loaded, names, *settings, write_rows=write).write(file)
    elif file.suffix == ".txt":
        write_text(file, "".join(f"{name}\n" for name in names))
    else:
        labeled = "annotations" in content.data
        labels = ((name, each.category if labeled else "", each.image) for name, each in chosen)
        write_rows(file, [("image", "label", "group"), *labels])
    return 0

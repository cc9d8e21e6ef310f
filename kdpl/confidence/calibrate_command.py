"""``python -m kdpl calibrate CLASSIFIER IMAGES``: score labelled images for later predictions."""

import sys
from pathlib import Path

from kdpl.cli.arguments import require_file
from kdpl.runtime.run_folder import require_classifier


def calibrate(
    classifier: str,
    images: str,
    *,
    class_names: str | None = None,
) -> int:
    """Score labelled images that a classifier was not trained on; keep the scores in its folder.

    The scores replace the scores of the run's validation images. predict --max-error, --sets and
    --calibrated rest on them. Of a table with the column group, one image of each group counts.

    Args:
        classifier: classifier folder of a student's run
        images: folder with a folder of images for each class, named as the class, or a .csv table
            with the columns image and label
        class_names: file with the names of the classes, if folders or labels have other names, as
            for init
    """
    require_classifier(Path(classifier))
    require_file("--class-names", class_names)

    from kdpl.classifier.bulk import load_classifier
    from kdpl.confidence.held_out import HeldOutScores
    from kdpl.confidence.labeled import classify_records, labeled_records
    from kdpl.tasks import require_one_class

    # classify the images
    loaded = load_classifier(classifier, None, "auto")
    require_one_class(loaded.task.name, "calibrate")
    records = labeled_records(images, class_names, loaded.class_names, one_of_a_group=True)
    logits, labels = classify_records(loaded, records)

    # save the scores, and the companions that rest on labels
    scores = HeldOutScores.of(logits, labels)
    digest = loaded.fingerprint()
    scores.save(Path(classifier), digest)
    for companion in loaded.companions.values():
        if (recalibrated := companion.calibrated(logits, labels)) is not None:
            recalibrated.save(Path(classifier), digest)
    accuracy = float(scores.correct.float().mean())
    print(f"{len(scores)} images: accuracy {accuracy:.1%}, temperature {scores.temperature:.3g}")
    if warning := scores.temperature_warning():
        print(f"warning: {warning}", file=sys.stderr)
    return 0

"""``python -m kdpl watch CLASSIFIER IMAGES…``: compare new images with the pool."""

import json
from pathlib import Path

from kdpl.cli.arguments import Rule, share
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import require_classifier

DIFFERS = 3
"""Exit code if new images differ from the pool."""

_FALSE_ALARMS = 0.01


def watch(
    classifier: str,
    images: list[str],
    *,
    against: list[str] = [],  # noqa: B006
    false_alarms: str | None = None,
    rule: Rule,
) -> int:
    """Compare new images, without labels, with the images that a classifier was distilled on.

    Prints one line of JSON. The exit code is 0 if they are alike, and 3 if they differ.

    Args:
        classifier: classifier folder of a student's run
        images: new images, as predict takes them: image files, .tar shards, folders, patterns,
            .txt lists
        against: images to compare with, instead of the sample of the pool in the classifier's
            folder
        false_alarms: share of batches like the pool that may be said to differ; 0.01 if not given
        rule: options of predict that reject images; by default, an image is rejected if it is less
            sure than 19 in 20 of the pool
    """
    from kdpl.data.sources import find_files

    require_classifier(Path(classifier))
    rate = share("--false-alarms", false_alarms) or _FALSE_ALARMS
    sources, references = list(find_files(images)), list(find_files(against))

    from kdpl.classifier.bulk import load_classifier
    from kdpl.confidence.drift.batches import MIN_IMAGES, compare_batches, read_batch
    from kdpl.confidence.drift.image_sample import MAX_IMAGES, REMEDY, ImageSample
    from kdpl.confidence.drift.two_samples import LEAST_RATE
    from kdpl.runtime.messages import inform
    from kdpl.tasks import require_one_class

    if rate < LEAST_RATE:
        raise ConfigError(
            f"--false-alarms is {false_alarms}, expected {LEAST_RATE:.2%} or more: "
            "give for example 1%"
        )
    # the reference: given images, or the sample that the classifier keeps
    loaded = load_classifier(classifier, None, "auto")
    require_one_class(loaded.task.name, "watch")
    decided = rule.of(loaded) if rule.make is not None else None
    if against:
        pool = read_batch(loaded, references, "--against").sample.draw(MAX_IMAGES)
    else:
        shape = loaded.vectors.vectors.shape
        pool = ImageSample.load(Path(classifier), loaded.fingerprint(), shape)
    if len(pool) < MIN_IMAGES:
        raise ConfigError(
            f"it takes {MIN_IMAGES} images of the pool or more, and {classifier} keeps "
            f"{len(pool)}: {REMEDY}"
        )

    # compare, and report the result
    new = read_batch(loaded, sources, "IMAGES")
    summary, missing = compare_batches(loaded, pool, new, decided, rate, trained_on=not against)
    reasons = "; ".join(summary["because"])
    why = f"differ from the pool: {reasons}" if summary["differs"] else "are like the pool"
    inform(f"{summary['images']} new images {why}")
    if missing:
        inform(f"images of none of the classes are not compared: {missing}")
    print(json.dumps(summary, ensure_ascii=False))
    return DIFFERS if summary["differs"] else 0

"""The commands of confidence, ``calibrate`` and ``watch``, and its options of ``predict``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule, Rule, require_file, share
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule

DIFFERS = 3
"""Exit code if new images differ from the pool."""


def calibrate(classifier: str, images: str, *, class_names: str | None = None) -> int:
    """Score labelled images that a classifier was not trained on; keep the scores in its folder.

    The scores replace the scores of the run's validation images. predict --max-error,
    --reject-unknown, --sets, --calibrated and --unknown rest on them, and so does watch. Of a table
    with the column group, one image of each group counts.

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
    from kdpl.confidence.held_out import NAME, HeldOutScores
    from kdpl.confidence.labeled import encode_records, labeled_records, require_unseen
    from kdpl.runtime.messages import warn
    from kdpl.tasks import require_one_class

    loaded = load_classifier(classifier, None, "auto")
    require_one_class(loaded.task.name, "calibrate")
    records = labeled_records(images, class_names, loaded.class_names, one_of_a_group=True)
    features, labels = encode_records(loaded, records)
    vectors, digest = loaded.cpu().head.class_vectors, loaded.fingerprint()
    require_unseen(Path(classifier), digest, records, features)

    scores = HeldOutScores.of(loaded.logits(features), labels)
    for companion in {**loaded.companions, NAME: scores}.values():
        calibrated = companion.calibrated(features, vectors, loaded.logit_scale, labels)
        calibrated.save(Path(classifier), digest)
    accuracy = float(scores.correct.float().mean())
    print(f"{len(scores)} images: accuracy {accuracy:.1%}, temperature {scores.temperature:.3g}")
    if warning := scores.temperature_warning():
        warn(warning)
    return 0


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
        images: new images, as predict takes them: image files, shards, folders, patterns,
            .txt lists
        against: images to compare with, instead of the sample of the pool in the classifier's
            folder
        false_alarms: share of batches like the pool that may be said to differ; 0.01 if not given
        rule: options of predict that reject images by their probability; by default, an image is
            rejected if it is less sure than 19 in 20 of the pool
    """
    from kdpl.data.sources import find_files

    require_classifier(Path(classifier))
    rate = share("--false-alarms", false_alarms) or 0.01
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
    loaded = load_classifier(classifier, None, "auto")
    require_one_class(loaded.task.name, "watch")
    threshold = rule.of(loaded).threshold
    if against:
        pool = read_batch(loaded, references, "--against").sample.draw(MAX_IMAGES)
    else:
        width = loaded.vectors.vectors.shape[1]
        pool = ImageSample.load(Path(classifier), loaded.fingerprint(), width)
    if len(pool) < MIN_IMAGES:
        raise ConfigError(
            f"it takes {MIN_IMAGES} images of the pool or more, and {classifier} keeps "
            f"{len(pool)}: {REMEDY}"
        )

    new = read_batch(loaded, sources, "IMAGES")
    summary, missing = compare_batches(loaded, pool, new, threshold, rate, trained_on=not against)
    reasons = "; ".join(summary["because"])
    why = f"differ from the pool: {reasons}" if summary["differs"] else "are like the pool"
    inform(f"{summary['images']} new images {why}")
    if missing:
        inform(f"images of none of the classes are not compared: {missing}")
    print(json.dumps(summary, ensure_ascii=False))
    return DIFFERS if summary["differs"] else 0


def options(
    *,
    max_error: str | None = None,
    sets: str | None = None,
    calibrated: bool = False,
    unknown: bool = False,
    reject_unknown: str | None = None,
) -> MakeRule:
    """Read the options; named in the plugin's ``predict``.

    Args:
        max_error: wanted error among accepted images, such as 0.02; the class of rejected images is
            left empty
        sets: wanted share of images whose set of classes has the true one, such as 0.95; the sets
            are a column, classes
        calibrated: probabilities at the temperature fitted on held-out images
        unknown: add the column unknown, the score from 0 to 1 of being none of the classes; with 19
            held-out images or more, about 5 % of images of the classes are above 0.5
        reject_unknown: reject images of none of the classes by that score, such that this share of
            images of the classes, such as 0.05, is rejected as well; --max-error and --sets then
            hold for the others
    """
    error, coverage = share("--max-error", max_error), share("--sets", sets)
    rejected = share("--reject-unknown", reject_unknown)

    def rule_of(classifier: "Classifier") -> "DecisionRule":
        from kdpl.confidence.decision import decision_rule
        from kdpl.confidence.held_out import held_out_of
        from kdpl.confidence.unknown import limit_warning, unknown_of
        from kdpl.runtime.messages import warn

        rule = decision_rule(classifier, error, coverage, calibrated, unknown, rejected)
        if calibrated and (warning := held_out_of(classifier).temperature_warning()):
            warn(f"--calibrated: {warning}")
        if unknown and (warning := limit_warning(unknown_of(classifier).held_out)):
            warn(f"--unknown: {warning}")
        return rule

    return rule_of

"""The command ``calibrate``, and the options of ``predict`` that rest on it."""

from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.cli.arguments import MakeRule, require_file, share
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from kdpl.classifier import Classifier
    from kdpl.tasks import DecisionRule


def calibrate(classifier: str, images: str, *, class_names: str | None = None) -> int:
    """Score labelled images that a classifier was not trained on; keep the scores in its folder.

    The scores replace the scores of the run's validation images. predict --max-error,
    --reject-unknown, --sets, --calibrated and --unknown rest on them. Of a table with the column
    group, one image of each group counts.

    With several labels an image, choose for each class the least probability for which it is named,
    for the best F1, instead of the choice on the validation images.

    Args:
        classifier: classifier folder of a student's run
        images: folder with a folder of images for each class, named as the class, or a .csv table
            with the columns image and label, where ; separates several labels
        class_names: file with the names of the classes, if folders or labels have other names, as
            for init
    """
    require_classifier(Path(classifier))
    require_file("--class-names", class_names)

    from kdpl.classifier.bulk import load_classifier
    from kdpl.classifier.folder import keep_task
    from kdpl.confidence.held_out import NAME, HeldOutScores
    from kdpl.confidence.labeled import encode_records, labeled_records
    from kdpl.runtime.messages import warn

    loaded = load_classifier(classifier, None, "auto")
    names, several = loaded.class_names, loaded.task.per_class
    records = labeled_records(images, class_names, names, several)
    features, labels = encode_records(loaded, records)
    logits = loaded.cpu().logits(features)
    if several:
        task, lines = loaded.task.calibrated(logits, labels, names)
        keep_task(Path(classifier), task.settings())
        print(*lines, sep="\n")
        return 0

    vectors, digest = loaded.head.class_vectors, loaded.fingerprint()
    scores = HeldOutScores.of(logits, labels)
    for companion in {**loaded.companions, NAME: scores}.values():
        calibrated = companion.calibrated(features, vectors, loaded.logit_scale, labels)
        calibrated.save(Path(classifier), digest)
    accuracy = float(scores.correct.float().mean())
    print(f"{len(scores)} images: accuracy {accuracy:.1%}, temperature {scores.temperature:.3g}")
    if warning := scores.temperature_warning():
        warn(warning)
    return 0


def options(
    *,
    max_error: str | None = None,
    sets: str | None = None,
    calibrated: bool = False,
    unknown: bool = False,
    reject_unknown: str | None = None,
) -> MakeRule:
    """Read the options of ``rule``.

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

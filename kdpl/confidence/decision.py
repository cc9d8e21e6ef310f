"""Decision rules for a wanted error, prediction sets, calibration, and none of the classes."""

from kdpl.classifier import Classifier
from kdpl.confidence.held_out import held_out_of, require_share, to_calibrate
from kdpl.confidence.unknown import NAME, unknown_of
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.faults import mark
from kdpl.tasks import DecisionRule, require_one_class


def decision_rule(
    classifier: Classifier,
    max_error: float | None = None,
    sets: float | None = None,
    calibrated: bool = False,
    unknown: bool = False,
    reject_unknown: float | None = None,
) -> DecisionRule:
    """Make a rule for ``Classifier.predict`` from the scores of held-out images.

    Args:
        classifier: The classifier, with the scores in its folder.
        max_error: Wanted error among accepted images, such as 0.02, see
            ``HeldOutScores.threshold``; a rejected image has one prediction, of class None.
        sets: Wanted share of images whose predictions hold the true class, such as 0.95; each image
            has as many predictions as necessary, see ``HeldOutScores.set_threshold``.
        calibrated: Divide logits by the temperature fitted on held-out images.
        unknown: Report the score of being none of the classes.
        reject_unknown: Share of images of the classes, such as 0.05, that this score may reject,
            see ``Unknown.limit``; it is reported. Wanted errors and sets are then of the images
            that it accepts.

    Raises:
        ConfigError: Both an error and sets are wanted, or the held-out images do not show them.
        ArtifactError: The classifier has no scores of held-out images, or of being none of the
            classes.
    """
    wanted = {"max_error": max_error, "sets": sets, "reject_unknown": reject_unknown}
    shares = {name: share for name, share in wanted.items() if share is not None}
    if unknown or calibrated or shares:
        require_one_class(classifier.task.name, "doubt about predictions")
    if max_error is not None and sets is not None:
        raise ConfigError(
            "max_error rejects images and sets names several classes for them: give one of the two"
        )
    # scores alone need no held-out images
    scorer = unknown_of(classifier) if unknown or reject_unknown is not None else None
    scores = () if scorer is None else (NAME,)
    if not shares and not calibrated:
        return DecisionRule(scores=scores)
    # before the remedy to calibrate, which does not help here
    for name, share in shares.items():
        require_share(name, share)
    held_out, limits = held_out_of(classifier), dict[str, float]()
    try:
        if scorer is not None and reject_unknown is not None:
            if len(scorer.unusual) != len(held_out):
                raise ArtifactError(
                    "this classifier does not know how unusual its held-out images are: "
                    f"{to_calibrate(classifier.folder)}"
                )
            # the other thresholds are for the images that this one accepts
            limits[NAME], accepted = scorer.limit(reject_unknown)
            held_out = held_out.among(accepted)
        return DecisionRule(
            held_out.best_temperature() if calibrated else 1.0,
            held_out.threshold(max_error) if max_error is not None else None,
            held_out.set_threshold(sets) if sets is not None else None,
            scores=scores,
            limits=limits,
        )
    except ConfigError as error:
        mark(error, to_calibrate(classifier.folder))
        raise

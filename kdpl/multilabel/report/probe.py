"""Linear probe for several labels: a logistic regression per class on frozen features."""

from dataclasses import replace

from torch import Tensor

from kdpl.data.labels import EvaluationSplit
from kdpl.data.probe import STRENGTHS, logistic_regression, scale_of
from kdpl.metrics import test_key
from kdpl.multilabel.metrics import class_scores
from kdpl.report.probes import clip_of, encode, load_encoder, require_probe
from kdpl.report.run_folder import Run
from kdpl.runtime.predictions import write_results
from kdpl.runtime.run_folder import PROBE_FOLDER


def linear_probe(run: Run, role: str) -> float:
    """Return the test mAP of a probe on the network of a run's ``teacher`` or ``student``.

    The probe learns from the teacher's labels; with ``base_to_novel``, it has only the base
    classes. The result is kept in the run's folder, next to the results of the stages.
    """
    # refuse what has no labels or no features
    config = clip_of(run.stages[role])
    data = (replace(run, student=None) if "teacher" in run.stages else run).data
    require_probe(config, data)

    # encode the splits, and fit and measure
    clip, classes = load_encoder(config), len(data.tuning_class_names)

    def encoded(split: EvaluationSplit) -> tuple[Tensor, Tensor]:
        features, labels = encode(clip, data, split)
        return features, labels[:, :classes]

    labeled, test = encoded("labeled"), encoded("test")
    val = encoded("val") if data.splits.val else None
    precision = probed_map(labeled, val, test)
    key = test_key("map" if data.num_base is None else "base_map")
    if not run.read_only:
        write_results(run.folder / PROBE_FOLDER / role, len(test[0]), {key: precision})
    return precision


def probed_map(
    labeled: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, test: tuple[Tensor, Tensor]
) -> float:
    """Fit a probe, and return its mean average precision on test images.

    Features are centred on the labelled images, and scaled to a total variance of one. A class that
    all or none of the labelled images have is not learned.

    Args:
        labeled: Normalised features float32 [N, D] and labels, 0 or 1, [N, C], to learn from.
        val: Features and labels that choose among ``STRENGTHS``; None: the first strength is used.
        test: Features and labels to measure on.
    """
    mean, scale = scale_of(labeled[0])
    rows, classes = (labeled[0] - mean) / scale, labeled[1].bool().T

    def fit(strength: float) -> tuple[Tensor, Tensor]:
        # one regression for each class
        weights, biases = rows.new_zeros(rows.shape[1], len(classes)), rows.new_zeros(len(classes))
        for label, has in enumerate(classes):
            if has.any() and not has.all():
                weight, bias, _ = logistic_regression(rows, has, strength)
                weights[:, label], biases[label] = weight[:, 1], bias[1]
        return weights, biases

    def precision(probe: tuple[Tensor, Tensor], part: tuple[Tensor, Tensor]) -> float:
        logits = (part[0] - mean) / scale @ probe[0] + probe[1]
        return float(class_scores(logits, part[1], None).average_precision.nanmean())

    # the strength with the best mAP on validation images
    if val is None:
        return precision(fit(STRENGTHS[0]), test)
    return precision(max(map(fit, STRENGTHS), key=lambda probe: precision(probe, val)), test)

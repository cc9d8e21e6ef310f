"""Predictions with rejection, sets or calibrated probabilities, and a fit that ends early."""

import numpy as np
import torch

from kdpl.confidence import decision_rule
from kdpl.data.groups import one_of_each


def predict(classifier, images, top_k=1, **wanted):
    return classifier.predict(images, top_k, rule=decision_rule(classifier, **wanted))


def bursts(draw, size, groups=120, error=0.06):
    """Near-copies in groups of a size, right or wrong together, as often at each score.

    Returns scores and correctness of all, and the rows of one image of each group.
    """
    scores = np.repeat(draw.uniform(0.5, 0.99, groups), size) + draw.uniform(0, 1e-4, size * groups)
    correct = np.repeat(draw.random(groups) >= error, size)
    sources = [str(i) for i in range(size * groups)]
    rows = one_of_each(sources, {source: str(int(source) // size) for source in sources}, 0)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(correct), torch.tensor(rows)

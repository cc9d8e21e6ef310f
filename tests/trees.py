"""Random trees over classes as plain dictionaries, and their maths by loops."""

import numpy as np
from scipy.stats import beta


def random_parents(draw, num_classes):
    """The parent of each node of a random tree whose leaves are ``c0``, ``c1``, …, at any depth."""
    parents, tops = {}, [f"c{i}" for i in range(num_classes)]
    while len(tops) > 1:
        # some nodes have one child alone
        chosen = set(
            draw.choice(tops, size=min(len(tops), int(draw.integers(1, 5))), replace=False)
        )
        node = f"n{len(parents)}"
        parents |= dict.fromkeys(sorted(chosen), node)
        tops = [top for top in tops if top not in chosen] + [node]
    return parents or {"c0": "n"}


def write(file, parents):
    file.write_text("child,parent\n" + "".join(f"{c},{p}\n" for c, p in parents.items()))
    return file


def path(parents, node):
    """The nodes from below the root down to one."""
    return [*path(parents, parents[node]), node] if node in parents else []


def node_at(parents, name, level):
    """The node of a class at a level, from 1 on: the class itself where it ends earlier."""
    own = path(parents, name)
    return own[min(level, len(own)) - 1]


def depth(parents, names):
    return max(len(path(parents, name)) for name in names)


def node_probabilities(parents, names, probabilities, level):
    sums = {}
    for name, probability in zip(names, probabilities, strict=True):
        node = node_at(parents, name, level)
        sums[node] = sums.get(node, 0.0) + float(probability)
    return sums


def threshold(scores, correct, max_error, confidence, strictest=0.25):
    """By a loop from this share of the images, or the fewest that can show the error; None: there is none.

    The bound of the error is the upper one by Clopper and Pearson.
    """

    def bound(errors, accepted):
        return 1.0 if errors == accepted else beta.ppf(confidence, errors + 1, accepted - errors)

    found, permitted = None, -1
    for count in range(1, len(scores) + 1):
        more = permitted
        while bound(more + 1, count) <= max_error:
            more += 1
        if count < len(scores) * strictest or more < 0:
            continue
        if found is None or more > permitted or count == len(scores):
            least = sorted(scores, reverse=True)[count - 1]
            accepted = [c for s, c in zip(scores, correct, strict=True) if s >= least]
            if bound(accepted.count(False), len(accepted)) > max_error:
                break
            found = least
        permitted = more
    return found


def thresholds(scores, correct, max_error):
    """Of each level, from scores and whether they are right as lists [N][L]."""
    levels = len(scores[0])
    left, found = list(range(len(scores))), {}
    for level in reversed(range(levels)):
        own = [scores[i][level] for i in left], [correct[i][level] for i in left]
        found[level] = threshold(*own, max_error, 1 - 0.05 / levels)
        if found[level] is not None:
            left = [i for i in left if scores[i][level] < found[level]]
    return [found[level] for level in range(levels)]


def logits_and_labels(draw, parents, names, count):
    """Images of which some are mistaken for a near class, and some for any; float64 [N, C], [N]."""
    labels = draw.integers(len(names), size=count)
    shared = [
        [
            sum(a == b for a, b in zip(path(parents, x), path(parents, y), strict=False))
            for y in names
        ]
        for x in names
    ]
    blur = draw.gamma(2.0, 0.7, size=(count, 1))
    logits = np.array(shared)[labels] * 1.5 * blur + draw.standard_normal((count, len(names)))
    return logits, labels

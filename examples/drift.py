"""Ask whether new images differ from earlier ones, without labels: another camera, other things.

    python -m kdpl predict CLASSIFIER photos/january --out january.jsonl --embeddings
    python -m kdpl predict CLASSIFIER photos/today --out today.jsonl --embeddings
    python examples/drift.py january.jsonl today.jsonl

The exit code is 0 if they are alike, and 1 if they differ. At most 1 % of pairs of folders whose
images were drawn together and shuffled are said to differ. Frames of one video or photographs of
one place are no such draw. As the first folder, prefer images that the student was not distilled
on: it finds the ones that it has learned more usual than any new ones.
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import permutation_test
from sklearn.neighbors import NearestNeighbors

FALSE_ALARMS = 0.01
MOST_IMAGES = 1000  # of each folder: with more, differences that do not matter are significant
NEIGHBORS = 5
SHOWN = 10

Features = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def read(table: Path) -> tuple[list[str], Features]:
    """Read paths and features [N, D] of a sample of the images that could be read."""
    with table.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["embedding"] is not None]
    if len(rows) <= NEIGHBORS:
        raise ValueError(f"{table} has {len(rows)} images that could be read: give more")
    drawn = np.random.default_rng(0).permutation(len(rows))[:MOST_IMAGES]
    rows = [rows[row] for row in sorted(drawn)]
    return [row["path"] for row in rows], np.array([row["embedding"] for row in rows])


def p_values(earlier: Features, new: Features) -> dict[str, float]:
    """Test the distance of the means, and how often new images have new ones as neighbors."""
    features = np.concatenate([earlier, new])
    nearest = NearestNeighbors(n_neighbors=NEIGHBORS).fit(features).kneighbors()[1]

    def distance_of_means(one: Rows, other: Rows) -> float:
        return float(np.linalg.norm(features[one].mean(axis=0) - features[other].mean(axis=0)))

    def neighbors_among(_: Rows, other: Rows) -> float:
        is_other = np.zeros(len(features), dtype=bool)
        is_other[other] = True
        return float(is_other[nearest[other]].mean())

    rows = np.split(np.arange(len(features)), [len(earlier)])
    options = {"vectorized": False, "n_resamples": 999, "alternative": "greater", "random_state": 0}
    tests = {"mean": distance_of_means, "neighbors": neighbors_among}
    return {
        name: float(permutation_test(rows, statistic, **options).pvalue)
        for name, statistic in tests.items()
    }


def main(earlier: Path, new: Path) -> int:
    """Print the p-values and the new images farthest from the earlier ones."""
    (_, known), (paths, features) = read(earlier), read(new)
    found = p_values(known, features)
    # Bonferroni: both questions together cause no more false alarms
    differs = min(found.values()) * len(found) <= FALSE_ALARMS
    print("the images", "differ:" if differs else "are alike:", found)
    distances = NearestNeighbors(n_neighbors=1).fit(known).kneighbors(features)[0][:, 0]
    print("farthest:", *(paths[row] for row in np.argsort(-distances)[:SHOWN]))
    return int(differs)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/drift.py EARLIER.jsonl NEW.jsonl")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

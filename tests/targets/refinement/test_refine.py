"""Refinement of predictions, against plain loops in float64."""

import math
from dataclasses import replace

import pytest
import torch
import world
from pydantic import TypeAdapter

from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import write_tensors
from kdpl.targets.refinement import refine as refinement
from kdpl.targets.refinement.pool_targets import KIND, VERSION, Moved, PoolManifest, PoolTargets
from kdpl.targets.refinement.refine import Weights, affinity, nearest, refine
from kdpl.targets.refinement.target import Refined

N, C, D = 40, 4, 6
WEIGHTS = Weights(0.3, 3.0, 0.3)


@pytest.fixture(scope="module")
def pool():
    """Features around four directions, a teacher's soft predictions of them, and labels of three images."""
    draw = torch.Generator().manual_seed(1)
    classes = torch.arange(N) % C
    centres = torch.eye(D)[:C] + 0.4
    features = centres[classes] + 0.3 * torch.randn(N, D, generator=draw)
    features = torch.nn.functional.normalize(features, dim=1)
    logits = features @ centres.T + 0.5 * torch.randn(N, C, generator=draw)
    predictions = logits.mul(3).softmax(dim=1)
    labels = torch.full((N,), -1)
    labels[torch.tensor([3, 8, 21])] = classes[torch.tensor([3, 8, 21])]
    return features, predictions, labels


def plain_affinity(features, k, groups=range(N)):
    """a_ij, from every pair of images: half a cosine for each of the two that has the other among its k nearest."""
    n = len(features)
    cosine = [[float(features[i] @ features[j]) for j in range(n)] for i in range(n)]
    a = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        further = (j for j in range(n) if groups[j] != groups[i])
        for j in sorted(further, key=lambda j: -cosine[i][j])[:k]:
            a[i, j] += max(cosine[i][j], 0) / 2
            a[j, i] += max(cosine[i][j], 0) / 2
    return a


def plain_refine(features, predictions, labels, neighbors, weights, rounds):
    """The updates as they are written, image by image and class by class."""
    f, y = features.double(), predictions.double()
    a = plain_affinity(f, neighbors)
    labeled = [] if labels is None else [i for i in range(N) if labels[i] >= 0]

    def clamp(z):
        for i in labeled:
            z[i] = torch.eye(C, dtype=torch.float64)[labels[i]]
        return z

    def fit(z):
        means = torch.stack(
            [sum(z[i, c] * f[i] for i in range(N)) / z[:, c].sum() for c in range(C)]
        )
        variance = sum(z[i, c] * (f[i] - means[c]) ** 2 for i in range(N) for c in range(C)) / N
        return means, variance

    z = clamp(y.clone())
    for _ in range(rounds):
        means, variance = fit(z)
        for _ in range(5):
            new = torch.empty_like(z)
            for i in range(N):
                for c in range(C):
                    log_density = sum(
                        -((f[i, d] - means[c, d]) ** 2) / (2 * variance[d])
                        - math.log(math.sqrt(2 * math.pi * variance[d]))
                        for d in range(D)
                    )
                    nearby = sum(a[i, j] * z[j, c] for j in range(N) if a[i, j])
                    prior = math.log(max(y[i, c], 1e-9))
                    terms = (log_density, nearby, prior)
                    new[i, c] = sum(w * term for w, term in zip(weights, terms, strict=True))
            z = clamp(new.softmax(dim=1))
    return z, *fit(z)


def refined(pool, labels=None, neighbors=4, weights=WEIGHTS, rounds=4):
    features, predictions, _ = pool
    near = affinity(*nearest(features, neighbors, torch.arange(N)))
    labels = torch.full((N,), -1) if labels is None else labels
    return refine(features, predictions, near, labels, weights, rounds)


def test_images_of_a_group_are_no_neighbours(pool):
    groups = torch.arange(N) // 4
    made = affinity(*nearest(pool[0], 3, groups)).to_dense()
    assert (made - plain_affinity(pool[0], 3, groups)).abs().max() < 1e-6
    assert (made != affinity(*nearest(pool[0], 3, torch.arange(N))).to_dense()).any()
    assert nearest(pool[0][:3], 5, torch.arange(3))[1].shape == (3, 2)  # as many as there are


@pytest.mark.parametrize("labeled", [False, True])
def test_it_is_the_plain_updates(pool, labeled):
    settings = (pool[2] if labeled else None, 3, Weights(0.4, 0.7, 1.3), 2)
    made, expected = refined(pool, *settings), plain_refine(*pool[:2], *settings)
    fitted = refinement._fit(pool[0], pool[0].square().sum(dim=0), made, [slice(None)])
    for ours, plain in zip((made, *fitted), expected, strict=True):
        assert (ours - plain).abs().max() < 1e-5
    assert (made.argmax(dim=1) != pool[1].argmax(dim=1)).any()
    if labeled:
        seen = pool[2] >= 0
        assert made[seen].equal(torch.eye(C)[pool[2][seen]])


def test_the_order_of_images_and_the_size_of_chunks_do_not_matter(pool, monkeypatch):
    features, predictions, labels = pool
    whole = refined(pool, labels)
    monkeypatch.setattr(refinement, "_CELLS", 7 * N)
    assert (refined(pool, labels) - whole).abs().max() < 1e-5
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    shuffled = refined((features[order], predictions[order], None), labels[order])
    assert (shuffled - whole[order]).abs().max() < 1e-5


@pytest.fixture
def targets(pool):
    return PoolTargets(
        made_from={"teachers": ["abc"], "target": {"rounds": 15}},
        class_names=("a", "b", "c", "d"),
        taken=True,
        reason="taken",
        accuracy=(0.5, 0.75),
        before=(10, 10, 10, 10),
        after=(9, 11, 10, 10),
        moved=1,
        examples=(Moved(6, 0, 1),),
        images=torch.arange(N) * 2,
        assignments=refined(pool).half(),
    )


def test_the_file_holds_all_of_it_and_is_refused_if_damaged_or_invalid(targets, tmp_path):
    targets.save(tmp_path / "file")
    read = PoolTargets.load(tmp_path / "file")
    assert read.assignments.equal(targets.assignments)
    assert read.images.equal(targets.images)
    assert read.examples == targets.examples
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-30])
    with world.refused(ArtifactError, "is damaged"):
        PoolTargets.load(tmp_path / "file")
    fields = TypeAdapter(PoolManifest).dump_python(targets, mode="json")
    tensors = {name: getattr(targets, name) for name in ("images", "assignments")}
    for change in ({"examples": (("0", 0, 1),)}, {"taken": 2}, {"reason": "\x1b[2J"}):
        write_tensors(tmp_path / "file", KIND, VERSION, tensors, fields | change)
        with world.refused(ArtifactError, "file has an invalid field"):
            PoolTargets.load(tmp_path / "file")


def test_the_target_is_the_assignment_where_it_is_taken(targets, tmp_path):
    target, predicted = Refined(), torch.randn(3, C + 6)
    indices = torch.tensor([4, 0, 78])
    z = torch.nn.functional.pad(targets.assignments, (0, 6))
    wider = replace(targets, assignments=z, class_names=tuple(map(str, range(C + 6))))
    wider.save(tmp_path / "file")
    values, made_from = target.load(tmp_path / "file")
    assert made_from == targets.made_from
    floored = z[indices // 2].double() + 1e-4
    expected = floored / floored.sum(dim=1, keepdim=True)
    made = values.of(indices).double().softmax(dim=1)
    assert (made - expected).abs().max() < 2e-3  # float16
    replace(targets, taken=False).save(tmp_path / "file")
    assert target.load(tmp_path / "file")[0] is None
    assert target.logits(predicted, indices).equal(predicted)

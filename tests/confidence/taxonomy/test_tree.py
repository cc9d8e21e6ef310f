"""A tree of classes: which tables are one, the probabilities of its nodes, and thresholds for a wanted error."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trees
import world

from kdpl.confidence.student_outputs import VERSION, StudentOutputs, ValidationOutputs
from kdpl.confidence.taxonomy.scores import (
    FILE,
    LevelScores,
    level_rule,
    levels_answered,
)
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.runtime.artifacts import write_tensors
from kdpl.tasks import MULTI_CLASS, Predicted, Prediction

GOOD = "child,parent\na,x\nb,x\nx,root\nc,root\n"


def read(tmp_path, text, names=("a", "b", "c")):
    file = tmp_path / "tree.csv"
    file.write_text(text, encoding="utf-8")
    return Taxonomy.read(file, names)


def test_further_columns_order_and_composed_names_do_not_matter(tmp_path):
    text = "note,parent,child\nhm,root,cafe\u0301\n,root,b\nhm,root,b\n"
    assert read(tmp_path, text, ("b", "caf\u00e9")).nodes == (("b", "caf\u00e9"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "a,root\n", "has 'a' with two parents, 'x' and 'root': keep"),
        ("child,parent\na,x\nx,y\ny,x\nb,root\nc,root\n", "has the circle "),
        (GOOD + "d,x\n", "has the leaf 'd', which is not a class: "),
        (GOOD.replace("b,x\n", ""), "lacks the class 'b': "),
        (GOOD + "d,c\n", "has the class 'c' as a parent, expected a leaf: "),
        (GOOD.replace("c,root", "c,other"), "has the roots 'other' and 'root', expected one: "),
        ("name,above\na,b\n", "has the columns name, above, expected child and parent: "),
        ("child,parent\na,\n", "row 1 of taxonomy .* has a name that is empty: "),
        ('child,parent\n"' + "a" * 200_000 + '",b\n', "cannot be read as CSV .*: correct it"),
    ],
)
def test_a_table_that_is_no_tree_over_the_classes_is_named_in_one_sentence(tmp_path, text, says):
    with world.refused(DataError, says) as caught:
        read(tmp_path, text)
    assert "tree.csv" in str(caught.value)
    with world.refused(DataError, "none.csv cannot be read"):
        Taxonomy.read(tmp_path / "none.csv", ("a",))


@pytest.mark.parametrize("seed", range(8))
def test_nodes_and_probabilities_are_those_of_a_plain_loop(seed, tmp_path):
    draw = np.random.default_rng(seed)
    names = [f"c{i}" for i in draw.permutation(int(draw.integers(1, 12)))]
    parents = trees.random_parents(draw, len(names))
    tree = Taxonomy.read(trees.write(tmp_path / "tree.csv", parents), names)
    logits = torch.from_numpy(draw.standard_normal((7, len(names))) * 2).float()
    probabilities = logits.softmax(dim=1)
    scores, nodes = tree.best(probabilities)
    assert scores.shape == nodes.shape == (7, trees.depth(parents, names))
    for level in range(1, scores.shape[1] + 1):
        expected = [trees.node_at(parents, name, level) for name in names]
        assert [tree.nodes[level - 1][i] for i in tree.of_class[level - 1]] == expected
        for image in range(7):
            sums = trees.node_probabilities(parents, names, probabilities[image], level)
            best = max(sums, key=sums.get)
            assert tree.nodes[level - 1][nodes[image, level - 1]] == best
            assert float(scores[image, level - 1]) == pytest.approx(sums[best], abs=1e-6)
    # a node is at least as probable as what is below it
    assert (scores.diff(dim=1) <= 0).all()


def tree_of(tmp_path, seed, num_classes=8):
    """A random tree of two levels or more."""
    draw = np.random.default_rng(seed)
    names = tuple(f"c{i}" for i in range(num_classes))
    parents = trees.random_parents(draw, num_classes)
    while trees.depth(parents, names) < 2:
        parents = trees.random_parents(draw, num_classes)
    return draw, parents, Taxonomy.read(trees.write(tmp_path / "tree.csv", parents), names), names


def scores_of(draw, parents, taxonomy, names, count):
    logits, labels = trees.logits_and_labels(draw, parents, names, count)
    return LevelScores.of(taxonomy, torch.from_numpy(logits), torch.from_numpy(labels))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_error", [0.03, 0.1, 0.3])
def test_the_thresholds_are_those_of_a_plain_loop(seed, max_error, tmp_path):
    held_out = scores_of(*tree_of(tmp_path, seed), 250)
    plain = trees.thresholds(held_out.scores.tolist(), held_out.correct.tolist(), max_error)
    plain = [math.inf if threshold is None else threshold for threshold in plain]
    if min(plain) == math.inf:
        with world.refused(ConfigError, "at no level 250 held-out images show an error of"):
            held_out.thresholds(max_error)
    else:
        assert held_out.thresholds(max_error) == plain
    with world.refused(ConfigError, "level_error is"):
        held_out.thresholds(max_error * float("nan"))


@pytest.mark.parametrize("seed", [100, 103])
def test_a_wanted_error_is_kept_at_all_levels_in_95_percent_of_draws(seed, tmp_path):
    made = tree_of(tmp_path, seed)
    population = scores_of(*made, 20_000)
    draw, broken, reached, answered_at = made[0], 0, 0, torch.zeros(population.scores.shape[1] + 1)
    for _ in range(100):
        chosen = torch.from_numpy(draw.integers(len(population.scores), size=400))
        scores, correct = population.scores[chosen], population.correct[chosen]
        held_out = LevelScores(population.taxonomy, scores, correct)
        try:
            thresholds = held_out.thresholds(0.05)
        except ConfigError:
            continue
        reached += 1
        answered = levels_answered(population.scores, thresholds)
        answered_at += answered.bincount(minlength=len(answered_at)) / len(answered)
        errors = [
            1 - float(population.correct[answered == level, level - 1].float().mean())
            for level in answered.unique().tolist()
            if level
        ]
        broken += max(errors, default=0.0) > 0.05
    assert reached > 75
    # more than one level answers
    assert (answered_at[1:] / reached > 0.01).sum() > 1
    # 100 draws with 5 % broken each: 11 or more have a probability of 1.1 %
    assert broken <= 10


def outputs(folder, names, validation):
    vectors = SimpleNamespace(class_names=names)
    return StudentOutputs(folder, vectors, 1.0, validation, [], [], True)


def test_it_is_made_of_a_run_with_a_tree_and_read_again(tmp_path):
    draw, parents, _, names = tree_of(tmp_path, 3)
    logits, labels = map(torch.from_numpy, trees.logits_and_labels(draw, parents, names, 30))
    validation = ValidationOutputs(torch.empty(30, 2), logits, labels)
    assert LevelScores.made_from(outputs(tmp_path, names, validation)) is None
    trees.write(tmp_path / FILE, parents)
    made = LevelScores.made_from(outputs(tmp_path, names, validation))
    made.save(tmp_path, "abc")
    again = LevelScores.read(tmp_path, "abc")
    assert again.taxonomy.nodes == made.taxonomy.nodes
    assert torch.equal(again.taxonomy.of_class, made.taxonomy.of_class)
    assert torch.equal(again.scores, made.scores)
    assert torch.equal(again.correct, made.correct)
    # features that are the logits, by class vectors that are the unit vectors
    vectors = torch.eye(len(names), dtype=logits.dtype)
    calibrated = again.calibrated(logits[:9], vectors, 1.0, labels[:9])
    assert torch.equal(calibrated.scores, made.scores[:9])
    with world.refused(ArtifactError, "belongs to another classifier"):
        LevelScores.read(tmp_path, "def")
    # a sample of so many of each class shows no error among images as they come
    for given in (None, validation._replace(sampled=True)):
        LevelScores.made_from(outputs(tmp_path, names, given)).save(tmp_path, "abc")
        companions = {"taxonomy": LevelScores.read(tmp_path, "abc")}
        classifier = SimpleNamespace(companions=companions, class_names=names, folder=tmp_path)
        with world.refused(ArtifactError, f"run python -m kdpl calibrate {tmp_path} IMAGES"):
            level_rule(classifier, 0.05)
        with world.refused(ArtifactError, "no held-out images .*: save it, and run python"):
            companions["taxonomy"].thresholds(0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": torch.zeros(20, 1)},
        {"scores": torch.zeros(20, 2, dtype=torch.float64)},
        {"of_class": torch.tensor([[0, 0], [0, 2]])},
        {"of_class": torch.tensor([[0, 0], [0, -1]])},
        {"of_class": torch.zeros(2, 0, dtype=torch.int64)},
        {"nodes": (("x",),)},
        {"nodes": (("x",), ("a", "b\x1b"))},
        {"root": 3},
    ],
)
def test_a_file_that_cannot_be_is_refused(changes, tmp_path):
    tensors = {
        "of_class": torch.tensor([[0, 0], [0, 1]]),
        "scores": torch.full((20, 2), 0.5),
        "correct": torch.ones(20, 2, dtype=torch.bool),
    }
    fields = {"classifier": "abc", "root": "r", "nodes": (("x",), ("a", "b"))}
    path = tmp_path / LevelScores.file
    write_tensors(path, LevelScores.kind, VERSION, tensors, fields)
    assert LevelScores.read(tmp_path, "abc").taxonomy.nodes == (("x",), ("a", "b"))
    fields |= {name: value for name, value in changes.items() if name in fields}
    tensors |= {name: value for name, value in changes.items() if name not in fields}
    write_tensors(path, LevelScores.kind, VERSION, tensors, fields)
    with world.refused(ArtifactError, r"taxonomy.safetensors (is damaged|has an invalid field)"):
        LevelScores.read(tmp_path, "abc")


def test_a_rule_names_the_deepest_node_and_leaves_the_rest_empty(tmp_path):
    draw, parents, _, names = made = tree_of(tmp_path, 7)
    held_out = scores_of(*made, 400)
    companions = {"taxonomy": held_out}
    classifier = SimpleNamespace(companions=companions, class_names=names, folder=tmp_path)
    rule = level_rule(classifier, 0.1)
    thresholds = held_out.thresholds(0.1)
    logits = torch.from_numpy(trees.logits_and_labels(draw, parents, names, 50)[0])
    probabilities = MULTI_CLASS.probabilities(logits.float())
    top = probabilities.max(dim=1)
    given = [
        Predicted([Prediction(names[i], p)], torch.empty(2), {"unknown": 0.1})
        for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    named = rule.rename(given, probabilities)
    levels = set()
    for image, predicted in enumerate(named):
        level, node, score = 0, None, given[image].top[0].probability
        for number, threshold in enumerate(thresholds, start=1):
            sums = trees.node_probabilities(parents, names, probabilities[image], number)
            best = max(sums, key=sums.get)
            if sums[best] >= threshold:
                level, node, score = number, best, sums[best]
        assert predicted.top == [Prediction(node, pytest.approx(score, abs=1e-6))]
        assert predicted.scores == {"unknown": 0.1, "level": level}
        levels.add(level)
    assert len(levels) > 1
    columns = MULTI_CLASS.columns(1, rule)
    assert columns == ["class", "probability", "level"]
    assert MULTI_CLASS.cells(named[0], columns).keys() == {*columns}


def test_a_classifier_without_a_tree_or_with_that_of_other_classes_says_so(tmp_path):
    held_out = scores_of(*tree_of(tmp_path, 7), 20)
    for companions, names in (({"taxonomy": held_out}, ("c0",)), ({}, ())):
        with world.refused(ArtifactError, "no tree of its classes"):
            level_rule(SimpleNamespace(companions=companions, class_names=names), 0.1)

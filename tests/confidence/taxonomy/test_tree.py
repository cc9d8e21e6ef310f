"""A tree of classes: which tables are one, and the probabilities of its nodes."""

import numpy as np
import pytest
import torch
import trees
import world

from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.errors import DataError

GOOD = "child,parent\na,x\nb,x\nx,root\nc,root\n"


def read(tmp_path, text, names=("a", "b", "c")):
    file = tmp_path / "tree.csv"
    file.write_text(text, encoding="utf-8")
    return Taxonomy.read(file, names)


def test_a_leaf_that_ends_early_stands_for_itself_at_deeper_levels(tmp_path):
    tree = read(tmp_path, GOOD)
    assert tree.root == "root"
    assert tree.nodes == (("x", "c"), ("a", "b", "c"))
    assert tree.of_class.tolist() == [[0, 0, 1], [0, 1, 2]]


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

"""The table of docs/own_data.md: how many validation images are enough."""

import re
from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from kdpl.confidence.drift.two_samples import QUESTIONS, above_usual
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import USUAL, usual_rank
from kdpl.errors import ConfigError

PAGE = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")
TABLE = PAGE.split("| what for |")[1].split("\n\n")[0]


def row_of(word):
    """The row of the table with this word, as "at least | what more bring"."""
    (row,) = (line for line in TABLE.splitlines() if word in line)
    return row.rstrip(" |").split(" | ", 1)[1]


def least(possible):
    """The smallest number for which something is possible and not refused."""
    for number in range(1, 2000):
        try:
            if possible(number):
                return number
        except ConfigError:
            continue
    raise AssertionError("there is no such number")


def held_out(images, errors=0):
    """Scores of held-out images, of which those with the lowest are wrong."""
    scores = torch.linspace(0.5, 0.9, images)
    return HeldOutScores(1.0, scores, scores, torch.arange(images) >= errors)


@pytest.mark.parametrize(
    ("error", "words"), [(0.05, "error of 5 %"), (0.02, "for 2 %"), (0.01, "for 1 %")]
)
def test_a_threshold_takes_as_many_accepted_images_as_the_page_says(error, words):
    def number(errors):
        # of a threshold that accepts all
        found = least(lambda images: held_out(images, errors).threshold(error) == 0.5)
        # Clopper and Pearson: so few errors are less probable than 5 %
        assert binom.cdf(errors, found, error) <= 0.05 < binom.cdf(errors, found - 1, error)
        return found

    numbers = re.findall(r"\b\d{2,}\b", row_of(words))
    assert [*dict.fromkeys(numbers)] == [str(number(errors)) for errors in range(3)]


def test_a_set_takes_as_many_images_as_the_page_says():
    numbers = [
        least(lambda n, wanted=wanted: held_out(n).set_threshold(wanted) > 0)
        for wanted in (0.9, 0.95, 0.99)
    ]
    assert row_of("--sets").startswith("{}, {}, {} |".format(*numbers))


def test_the_limit_of_unknown_holds_from_as_many_images_as_the_page_says():
    def above(known):
        # of exchangeable images, the share that exceeds the score of this rank
        return (known + 1 - usual_rank(known)) / (known + 1)

    enough = least(lambda known: above(known) <= 1 - USUAL + 1e-9)
    assert all(above(known) == 1 / (known + 1) for known in range(1, enough))
    row = row_of("--unknown")
    assert row.startswith(f"{enough} | with V images, fewer than {enough}, a share of 1/(V + 1)")
    assert row.endswith(f"{100 * above(5):.0f} % for 5 images")


def test_the_fourth_question_is_answered_with_as_many_images_as_the_page_says():
    def alarm(known):
        """How many of 200 new images above the limit are too many, at 1 % false alarms."""
        rate = 0.01 / len(QUESTIONS)
        return next((above for above in range(201) if above_usual(above, 200, known) <= rate), None)

    fewest = least(lambda known: alarm(known) is not None)
    assert row_of("of `watch`").startswith(
        f"{fewest} | of 200 new images {alarm(fewest)} have to be above 0.5"
    )
    assert row_of("of `watch`").endswith(
        ", ".join(f"{alarm(known)} with {known}" for known in (19, 100, 500))
    )

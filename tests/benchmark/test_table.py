import csv
import io
from functools import partial

import campaigns
import pytest

from kdpl.benchmark.steps import Result
from kdpl.benchmark.table import FIGURES, average, tables
from kdpl.benchmark.table_text import markdown, to_csv

CAMPAIGN = """
protocols: [base_to_novel]
datasets: [dtd, oxford_pets]
seeds: [1, 2]
configs: []
rows:
  teacher: {title: teacher, teacher: t.yaml}
  student: {title: "**student**", student: s.yaml, of: teacher, published: promptkd}
"""
campaign = partial(campaigns.campaign, CAMPAIGN)


def result(dataset, seed, row, protocol="base_to_novel", setting="", **changes):
    student = row == "student" and protocol == "base_to_novel"
    fields = {"title": row, "images": 9, "transductive": student, "selected_on_test": False}
    place = {"protocol": protocol, "setting": setting, "dataset": dataset, "seed": seed, "row": row}
    return Result(**place, **{"metrics": {"test/acc": 0.5}, **fields, **changes})


def harmonic_mean(base, novel):
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def base_novel(base, novel):
    mean = harmonic_mean(base, novel)
    return {"test/acc": 0.1, "test/base_acc": base, "test/novel_acc": novel, "test/hm": mean}


RESULTS = [
    result("dtd", 1, "student", metrics=base_novel(0.8, 0.6)),
    result("dtd", 2, "student", metrics=base_novel(0.9, 0.7)),
    result("oxford_pets", 1, "student", metrics=base_novel(0.9, 0.5)),
    result("oxford_pets", 2, "student", metrics=base_novel(0.9, 0.9)),
]


def text_of(made, group, title):
    start = f"| {group} | {title}" if group else f"| {title}"
    (line,) = [line for line in markdown([made]).splitlines() if line.startswith(start)]
    return [part.strip() for part in line.strip("|").split("|")]


def test_means_deviations_over_seeds_and_averages_over_datasets_stand_beside_the_published_figures():
    (made,) = tables(campaign(), RESULTS)
    # the third of each seed by itself: 2·80·60/140 and 2·90·70/160
    assert text_of(made, "dtd", "**student**")[2:] == [
        "85.00 ± 7.07 [85.84, −0.84]",
        "65.00 ± 7.07 [71.37, −6.37]",
        "73.66 ± 7.20 [77.94, −4.28]",
    ]
    # base 85 and 90, novel 55 and 80, and so 2·85·55/140 and 2·90·80/170; published are of the two datasets
    # (85.84 + 96.30) / 2 and (71.37 + 98.01) / 2, and so 2·91.07·84.69/175.76
    assert text_of(made, "average", "**student**")[2:] == [
        "87.50 ± 3.54 [91.07, −3.57]",
        "67.50 ± 17.68 [84.69, −17.19]",
        "75.75 ± 12.67 [87.76, −12.02]",
    ]


def test_published_figures_are_complete_and_their_average_takes_the_harmonic_mean_last():
    assert len(FIGURES) == 11
    averages = [round(value, 2) for value in average([*FIGURES.values()]).values()]
    assert averages == [86.96, 80.73, 83.73]
    assert average([FIGURES["dtd"], {}]) == {}
    several_labels = {"test/base_map": 0.4, "test/novel_map": 0.2, "test/hm": 0.3}
    assert average([several_labels])["test/hm"] == pytest.approx(0.8 / 3)
    printed_otherwise = {"stanford_cars": 83.08, "ucf101": 85.83}
    for name, row in FIGURES.items():
        expected = printed_otherwise.get(name, row["test/hm"])
        mean = harmonic_mean(row["test/base_acc"], row["test/novel_acc"])
        assert mean == pytest.approx(expected, abs=0.011), name


def test_a_row_stands_where_it_is_run_alone():
    rows = {
        "teacher": {"teacher": "t.yaml"},
        "few": {"teacher": "t.yaml", "protocols": "few_shot", "shots": 4},
    }
    places = {"protocols": ["few_shot", "base_to_novel"], "shots": [1, 4], "seeds": [1]}
    four = result("dtd", 1, "few", "few_shot", "shots_4")
    few_shot, base_to_novel = tables(campaign(rows=rows, **places), [four])
    assert text_of(few_shot, "dtd", "few")[2:] == ["", "50.0"]
    assert text_of(few_shot, "dtd", "teacher")[2:] == ["missing (0 of 1 seed)"] * 2
    assert "few" not in markdown([base_to_novel])


def test_missing_runs_are_named_by_the_number_of_seeds_that_are_there():
    (made,) = tables(campaign(seeds=[1, 2, 3]), RESULTS[:3])
    assert text_of(made, "dtd", "teacher")[2] == "missing (0 of 3 seeds)"
    assert text_of(made, "dtd", "**student**")[2] == "85.00 ± 7.07 (2 of 3 seeds) [85.84, −0.84]"
    assert text_of(made, "oxford\\_pets", "**student**")[2] == "90.00 (1 of 3 seeds) [96.30, −6.30]"
    # the second seed has only one of the two datasets
    assert text_of(made, "average", "**student**")[2] == "85.00 (1 of 3 seeds) [91.07, −6.07]"
    # results that the campaign does not have are left out
    others = [result("dtd", 7, "student", metrics=base_novel(0, 0)), result("dtd", 1, "pupil")]
    (empty,) = tables(campaign(seeds=[1]), others)
    assert text_of(empty, "dtd", "**student**")[2] == "missing (0 of 1 seed) [85.84]"


def test_one_dataset_has_its_protocols_side_by_side():
    protocols = ["few_shot", "base_to_novel"]
    one = campaign(protocols=protocols, datasets=["digits"], shots=[16], seeds=[1])
    results = [
        result("digits", 1, "teacher", "few_shot", "shots_16", metrics={"test/acc": 0.695}),
        result("digits", 1, "student", metrics=base_novel(0.5, 0.25)),
    ]
    assert markdown(tables(one, results)) == (
        "| | 16 shots, all classes | base | novel | HM |\n"
        "|---|--:|--:|--:|--:|\n"
        "| teacher | 69.5 | missing (0 of 1 seed) | missing (0 of 1 seed) | missing (0 of 1 seed) |\n"
        "| **student** † | missing (0 of 1 seed) | 50.0 | 25.0 | 33.3 |\n"
        "\n"
        "† transductive: unlabelled images of the novel classes were seen in distillation\n"
    )


def test_targets_are_columns_and_the_source_is_not_averaged():
    first, second = protocols = ["cross_dataset", "domain_generalization"]
    both = campaign(protocols=protocols, source="imagenet", variants=["imagenet_a"], seeds=[1])
    values = {(first, "dtd"): 0.2, (first, "oxford_pets"): 0.4}
    values |= {(second, "imagenet"): 0.7, (second, "imagenet_a"): 0.5}
    results = [
        result(data, 1, "student", name, metrics={"test/acc": accuracy})
        for (name, data), accuracy in values.items()
    ]
    cross, shift = tables(both, results)
    assert cross.columns == ("dtd", "oxford_pets", "average")
    assert text_of(cross, "", "**student**")[1:] == ["20.0", "40.0", "30.0"]
    assert shift.columns == ("imagenet", "imagenet_a", "average")
    assert text_of(shift, "", "**student**")[1:] == ["70.0", "50.0", "50.0"]
    text = markdown([cross, shift])
    assert "### Cross-dataset\n" in text
    assert "transductive" not in text


def test_an_epoch_that_was_chosen_on_test_images_is_marked_and_explained():
    chosen = result("dtd", 1, "teacher", metrics=base_novel(0.5, 0.5), selected_on_test=True)
    text = markdown(tables(campaign(), [chosen, *RESULTS]))
    for start in ("| dtd | teacher ‡ |", "| oxford\\_pets | teacher |", "| dtd | **student** † |"):
        assert start in text
    assert "‡ the epoch was chosen" in text


def test_csv_has_one_row_for_each_cell_and_notes_stand_below_each_table_of_markdown():
    note = "validation labels chose 5 %, none is seen"
    made = tables(campaigns.campaign(CAMPAIGN + f"notes: {note}\n"), RESULTS)
    assert markdown(made * 2).count(note) == 2
    rows = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert len(rows) == 3 * 2 * 3
    cells = {
        (row["dataset"], row["row"], row["metric"]): ",".join(list(row.values())[6:])
        for row in rows
    }
    written = "85.0000,7.0711,2,2,85.8400,-0.8400,true,false"
    assert cells["dtd", "student", "test/base_acc"] == written
    assert cells["dtd", "teacher", "test/hm"] == ",,0,2,,,false,false"


def test_markdown_escapes_its_own_signs():
    hostile = {"a": {"title": r"50% & $x_1$ #2 {a|b} ~^\ *c* <i> `d`", "teacher": "t.yaml"}}
    made = tables(campaign(rows=hostile, seeds=[1]), [])
    escaped = r"| oxford\_pets | 50% & $x\_1$ \#2 {a\|b} \~^\\ \*c\* \<i\> \`d\` | missing"
    assert escaped in markdown(made)


def probe(dataset, seed, protocol="base_to_novel", setting="", **metrics):
    name = "linear probe: tiny-student"
    return result(dataset, seed, name, protocol, setting, title=name, probe=True, metrics=metrics)


def test_a_linear_probe_is_a_line_beside_the_rows_of_its_runs_and_missing_only_with_labels():
    probes = [probe("dtd", seed, **{"test/base_acc": 0.6 + 0.1 * seed}) for seed in (1, 2)]
    # a second run of the same network has the same
    (made,) = tables(campaign(), [*RESULTS, *probes, probes[0]])
    lines = [line.title for line in made.lines if line.group == "dtd"]
    assert lines == ["teacher", "**student**", "linear probe: tiny-student"]
    # it knows the base classes alone
    assert text_of(made, "dtd", "linear probe")[2:] == ["75.00 ± 7.07", "", ""]
    assert text_of(made, "oxford\\_pets", "linear probe")[2:] == ["missing (0 of 2 seeds)", "", ""]
    few = {"protocols": ["few_shot"], "datasets": ["dtd"], "shots": [0, 4], "seeds": [1]}
    labeled = probe("dtd", 1, "few_shot", "shots_4", **{"test/acc": 0.5})
    (made,) = tables(campaign(**few), [labeled])
    assert text_of(made, "", "linear probe")[1:] == ["", "50.0"]

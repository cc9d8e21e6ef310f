import io
from dataclasses import replace

import pytest
from rich.console import Console
from runs import DATA, SHORT, STUDENT, TEACHER, error_line, files_of

from kdpl.__main__ import main
from kdpl.refinement import target as refined_target
from kdpl.refinement.command import _show
from kdpl.refinement.pool_targets import POOL_TARGETS_FILE, PoolTargets

REFINED = "--model.init_args.target=refined"
FEW_IMAGES = [
    "--data.init_args.unlabeled_share=0.2",
    "--data.init_args.shots=2",
    "--data.init_args.val_shots=2",
]


def options(teacher, out, *more):
    given = [f"--model.init_args.teacher={teacher}", f"--out={out}", *more]
    return [*DATA, *STUDENT, *SHORT, *FEW_IMAGES, *given]


@pytest.fixture(scope="module")
def written(teacher_run, tmp_path_factory):
    """A folder with the targets that ``refine`` wrote, and what it printed; no test changes it."""
    out = tmp_path_factory.mktemp("written") / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed := io.StringIO())
        assert main(["refine", *options(teacher_run, out)]) == 0
    return out, printed.getvalue()


def cells(line):
    return [cell.strip() for cell in line.split("│")[1:-1]]


def without_lock(folder):
    return {name: content for name, content in files_of(folder).items() if name != ".lock"}


def test_it_writes_the_targets_alone_and_shows_what_changes(written, capsys):
    out, printed = written
    assert [*without_lock(out)] == [POOL_TARGETS_FILE]
    targets = PoolTargets.load(out / POOL_TARGETS_FILE)
    assert targets.moved > 0
    for name, before, after in targets.changes:
        (line,) = (line for line in printed.splitlines() if name in line)
        assert [cell.strip() for cell in line.split("│")[1:-1]] == [
            name,
            str(before),
            str(after),
            f"{after - before:+d}",
        ]


def test_a_second_start_says_that_it_is_done_and_changes_nothing(
    written, teacher_run, capsys, monkeypatch
):
    out, printed = written
    monkeypatch.setattr(refined_target, "assign", None)
    before = without_lock(out)
    assert main(["refine", *options(teacher_run, out)]) == 0
    said = capsys.readouterr()
    assert said.out == printed
    assert f"refinement: {PoolTargets.load(out / POOL_TARGETS_FILE).reason}" in said.err
    assert said.err.endswith(f"{out / POOL_TARGETS_FILE} was there already: nothing to do\n")
    assert without_lock(out) == before


def test_a_fit_learns_them_and_is_not_touched_afterwards(
    written, teacher_run, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "student"
    out.mkdir()
    (out / POOL_TARGETS_FILE).write_bytes((written[0] / POOL_TARGETS_FILE).read_bytes())
    monkeypatch.setattr(refined_target, "assign", None)
    assert main(["fit", *options(teacher_run, out, REFINED, "--seed_everything=2")]) == 1
    error_line(
        capsys,
        f"{out / POOL_TARGETS_FILE} was made for other labels: remove it, or choose another --out",
    )
    assert main(["fit", *options(teacher_run, out, REFINED)]) == 0
    before = without_lock(out)
    assert main(["refine", *options(teacher_run, out)]) == 0
    assert capsys.readouterr().err.endswith("was there already: nothing to do\n")
    assert without_lock(out) == before
    other = [
        "--model.init_args.target=kdpl.refinement.target.Refined",
        "--model.init_args.target.init_args.rounds=3",
    ]
    assert main(["refine", *options(teacher_run, out, *other)]) == 1
    error_line(
        capsys,
        f"{out} holds a run with other settings (model.init_args.target is refined there and None here)",
    )


def test_interrupted_it_leaves_nothing_behind(teacher_run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(refined_target, "assign", interrupt)
    assert main(["refine", *options(teacher_run, tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "refine needs the settings of a student's fit"),
        (
            [*DATA, *STUDENT, "--model.init_args.teacher=t"],
            "the run has no folder to write to: give --out FOLDER",
        ),
        ([*DATA, *TEACHER, "--out=o"], "expected those of a student"),
        (options("t", "o"), "t/class_vectors.safetensors does not exist"),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(
    args, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["refine", *args]) == 1
    error_line(capsys, words)
    assert not list(tmp_path.iterdir())


def test_of_many_classes_those_that_change_most_are_shown(written):
    targets = PoolTargets.load(written[0] / POOL_TARGETS_FILE)
    names = tuple(f"[b]{i}" for i in range(30))
    many = replace(targets, class_names=names, before=(5,) * 30, after=(*range(30),), share=0.0)
    console = Console(file=io.StringIO(), width=100)
    _show(many, console)
    title, _, _, _, first, *others = console.file.getvalue().splitlines()
    assert (
        title
        == "unlabelled images of the 20 classes that change most; not taken, a student learns the first:"
    )
    assert cells(first) == ["[b]29", "5", "29", "+24"]
    assert sum("[b]" in line for line in others) == 19

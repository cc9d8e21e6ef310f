"""The choice of what of a student is trained, by its fidelity."""

import json
import re
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from runs import (
    DATA,
    SHORT,
    STAGES,
    STUDENT,
    TEACHER,
    configs,
    curves_of,
    interrupted_at,
    noise,
)

from kdpl.__main__ import main
from kdpl.class_vectors import FrozenTeacher
from kdpl.cli.fit import run_command
from kdpl.errors import ConfigError
from kdpl.runtime.files import write_text

# of 4 epochs a quarter, which is at least 2
SETTINGS = [*DATA, *STUDENT, *SHORT, "--trainer.max_epochs=4", "--data.init_args.val_shots=2"]
NAMES = ("configured", "tower_0.001", "tower_0.01")


def search(teacher, out, *more):
    given = [f"--model.init_args.teacher={teacher}", f"--out={out}", "--lr", "0.001", "0.01"]
    return main(["search", *SETTINGS, *given, *more])


def rows_in(text):
    rows = re.findall(r"^\| (\w[\w.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    return {name: (float(share), float(kl)) for name, share, kl in rows}


@pytest.fixture(scope="module")
def whole(teacher_run, tmp_path_factory):
    """The folder of a search that was not interrupted; no test changes it."""
    out = tmp_path_factory.mktemp("search") / "out"
    assert search(teacher_run, out) == 0
    return out


def settings_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]


def test_the_candidate_that_agrees_most_becomes_a_config(whole, teacher_run, tmp_path, capsys):
    curves = {name: curves_of(whole / name) for name in NAMES}
    last = {name: (c["val/fidelity"][-1][1], -c["val/kl"][-1][1]) for name, c in curves.items()}
    best = max(last, key=last.get)
    chosen = yaml.safe_load((whole / "best.yaml").read_text())["model"]["init_args"]
    wanted = settings_of(whole / best)
    assert chosen == {name: wanted[name] for name in ("fine_tune", "vision_prompts", "optim")}

    # each was measured once, after its last epoch, on as many images
    for each in curves.values():
        assert len(each["val/fidelity"]) == 1
        assert each["pool/unseen"][-1][1] == 100
        assert [epoch for _, epoch in each["epoch"]][-1] == 1

    # finished candidates are not fitted again
    assert search(teacher_run, whole) == 0
    said = capsys.readouterr()
    assert said.err.count("is finished: nothing to do") == 3
    assert "tower_0.01: 2 epochs each; the 3 candidates cost 1.5 times the fit of 4" in said.err
    assert "agrees on % of 100" in said.out
    assert f"{best} is written to {whole}/best.yaml" in said.out
    shown = {name: (round(100 * share, 1), round(-kl, 3)) for name, (share, kl) in last.items()}
    assert rows_in(said.out) == shown

    # after the student's config, it is that candidate
    given = [f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path / 'fit'}"]
    more = ["--config", f"{whole}/best.yaml", "--trainer.max_epochs=1"]
    assert run_command(["fit", *SETTINGS, *given, *more]) == 0
    assert settings_of(tmp_path / "fit")["optim"] == wanted["optim"]


def test_the_towers_are_trained_without_prompts(whole):
    assert settings_of(whole / "configured")["vision_prompts"]["depth"] == 2
    for name, rate in (("tower_0.001", 0.001), ("tower_0.01", 0.01)):
        settings = settings_of(whole / name)
        assert settings["fine_tune"]
        assert settings["vision_prompts"]["depth"] == 0
        assert settings["optim"]["optimizer"] == "adamw"
        assert settings["optim"]["lr"] == rate


def test_an_interrupted_search_goes_on_with_the_candidate_that_was_next(
    whole, teacher_run, tmp_path, capsys
):
    with interrupted_at(3):
        assert search(teacher_run, tmp_path) == 130
    assert not (tmp_path / "best.yaml").exists()
    assert search(teacher_run, tmp_path) == 0
    assert capsys.readouterr().err.count("is finished: nothing to do") == 2
    assert (tmp_path / "best.yaml").read_text() == (whole / "best.yaml").read_text()


def test_a_search_of_other_settings_is_refused(whole, teacher_run, capsys):
    before = (whole / "best.yaml").read_bytes()
    assert search(teacher_run, whole, "--model.init_args.optim.lr=0.0001") == 1
    said = f"the run in {whole}/configured was made from something else (model.init_args.optim.lr"
    assert said in capsys.readouterr().err
    assert (whole / "best.yaml").read_bytes() == before


def test_a_run_asks_the_search_again_until_its_student_is_finished(tmp_path, monkeypatch, capsys):
    """The search itself compares settings, see above."""
    asked = []

    def compare(student, candidates, out, decoded):
        asked.append([*candidates])
        if len(asked) > 1:
            raise ConfigError("it is of other settings: refused by a candidate")
        write_text(Path(out, "best.yaml"), "model: {init_args: {optim: {lr: 0.1}}}")

    monkeypatch.setattr("kdpl.cli.search.compare", compare)
    given = [*DATA, *STAGES, *SHORT, f"--out={tmp_path}", "--search", "--trainer.max_epochs=1"]
    with interrupted_at(2):
        assert main(["run", *given]) == 130
    assert asked == [["configured", "tower_0.0001", "tower_0.0003", "tower_0.001"]]
    # what it has found does not stand for what it would find now
    assert main(["run", *given]) == 1
    assert "refused by a candidate" in capsys.readouterr().err
    assert not (tmp_path / "student" / "config.yaml").exists()


def test_candidates_share_features_targets_and_the_look_at_all_images(tmp_path, monkeypatch):
    for number in range(320):
        path = tmp_path / "data" / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(32, 32, seed=number).save(path)
    root = f"--data.init_args.root={tmp_path / 'data'}"
    given = [*configs("data/folder.yaml", "trainer/cpu.yaml"), root]
    given += ["--data.init_args.shots=2", "--data.init_args.batch_size=8"]
    assert run_command(["fit", *given, *TEACHER, *SHORT, f"--out={tmp_path / 'teacher'}"]) == 0
    counts = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name in (
        "kdpl.data.scan.checked.Checked.decode_all",
        "kdpl.targets.refinement.target.assign",
    ):
        monkeypatch.setattr(name, counted(name, resolve_name(name)))
    monkeypatch.setattr(
        FrozenTeacher, "both_features", counted("both", FrozenTeacher.both_features)
    )
    target = {"class_path": "kdpl.targets.refinement.target.Refined", "init_args": {"views": 1}}
    given += [*STUDENT, *SHORT, f"--model.init_args.target={json.dumps(target)}"]
    given += [f"--model.init_args.teacher={tmp_path / 'teacher'}", f"--out={tmp_path / 'out'}"]
    assert main(["search", *given, "--epochs=1", "--lr=0.001"]) == 0
    # batches of the pool, of which a quarter is held out for the test; labelled images are in it
    assert counts.pop("both") == -(-240 // 64)
    assert [*counts.values()] == [1, 1]


def test_a_candidate_that_diverges_is_left_out_and_no_label_is_needed(
    teacher_run, tmp_path, capsys
):
    given = [f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path}", "--lr=1e30"]
    options = [*configs("student/fidelity.yaml"), "--data.init_args.shots=0", "--epochs=2"]
    assert main(["search", *SETTINGS, *given, *options]) == 0
    said = capsys.readouterr()
    assert "tower_1e+30 is left out: " in said.err
    assert rows_in(said.out).keys() == {"configured"}
    assert "val/acc" not in curves_of(tmp_path / "configured")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "search needs the settings of a student's fit"),
        ([*DATA, *TEACHER], "the settings are those of kdpl.TeacherPromptTuning, expected"),
        (
            [*SETTINGS, "--model.init_args.teacher=T", "--trainer.max_epochs=-1"],
            "the number of epochs is unknown: set trainer.max_epochs",
        ),
    ],
)
def test_other_settings_are_refused(args, words, tmp_path, capsys):
    assert main(["search", *args, f"--out={tmp_path}"]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_searches_before_it_distils_and_takes_what_was_found(tmp_path, capsys):
    given = [*DATA, *STAGES, *SHORT, f"--out={tmp_path}", "--search", "--trainer.max_epochs=1"]
    assert main(["run", *given]) == 0
    said = capsys.readouterr()
    assert "search what of the student is trained" in said.out + said.err
    best = yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())["model"]["init_args"]
    own = settings_of(tmp_path / "student")
    assert best == {name: own[name] for name in best}
    assert {each.name for each in (tmp_path / "search").iterdir() if each.is_dir()} == {
        "configured",
        "tower_0.0001",
        "tower_0.0003",
        "tower_0.001",
    }

    # the same command has nothing left to do
    before = (tmp_path / "student" / "metrics.csv").read_bytes()
    assert main(["run", *given]) == 0
    assert (tmp_path / "student" / "metrics.csv").read_bytes() == before

"""The choice of what of a student is trained, by its fidelity."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

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
    error_line,
    image_folder,
    interrupted_at,
    noise,
)
from world import refused

from kdpl.__main__ import main
from kdpl.cli.fit import parse_stage, run_command
from kdpl.cli.search import best_of, candidates_of, compare
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import write_text
from kdpl.runtime.run_folder import DECODED_FILE

# of 4 epochs a quarter, which is at least 2
STUDENTS = [*STUDENT, *SHORT, "--trainer.max_epochs=4"]
TEACHER_T = "--model.init_args.teacher=T"
# one rate that trains, and one that diverges
NAMES = ("configured", "tower_0.01", "tower_1e+30")
EXPENSIVE = (
    "kdpl.data.checked.Checked.of",
    "kdpl.targets.refinement.target.assign",
    "kdpl.targets.frozen_teacher.FrozenTeacher.both_features",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search in a folder of images without a label that was interrupted and resumed, and its expensive calls."""
    root, counts = tmp_path_factory.mktemp("search"), Counter()
    # the fewest of which 100 can be held out
    image_folder(root / "data", images=100, splits=("train",))
    for number, file in enumerate(sorted((root / "data").rglob("*.png"))):
        noise(16, 16, seed=number).save(file)
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), "--data.init_args.shots=0"]
    data += [f"--data.init_args.root={root / 'data'}", "--data.init_args.reading.test_share=0"]
    teacher = [*TEACHER, *SHORT, *configs("teacher/zero_shot.yaml")]
    assert run_command(["fit", *data, *teacher, f"--out={root / 'teacher'}"]) == 0
    target = {"class_path": "kdpl.targets.refinement.target.Refined", "init_args": {"views": 1}}
    # several steps an epoch: a loss that is not finite is seen in the step after
    student = [*data, *STUDENTS, f"--model.init_args.target={json.dumps(target)}"]
    student += [f"--model.init_args.teacher={root / 'teacher'}", "--data.init_args.batch_size=8"]

    def counted(name):
        function = resolve_name(name)
        return lambda *args, **kwargs: counts.update([name]) or function(*args, **kwargs)

    def run(*more):
        with pytest.MonkeyPatch.context() as patch:
            for name in EXPENSIVE:
                patch.setattr(name, counted(name))
            stage = parse_stage("fit", [*student, "--out=fit", *more])
            candidates = candidates_of(stage, root / "out", [0.01, 1e30])
            return compare(stage, candidates, root / "out", root / "out" / NAMES[0] / DECODED_FILE)

    with interrupted_at(2), pytest.raises(KeyboardInterrupt):
        run()
    assert not (root / "out/best.yaml").exists()
    run()
    return SimpleNamespace(run=run, out=root / "out", student=student, counts=counts)


def settings_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]


def test_candidates_share_preparation_and_the_one_that_agrees_most_becomes_a_config(whole, capsys):
    assert [whole.counts[name] for name in EXPENSIVE] == [1, 1, -(-200 // 64)]
    # a tower is trained without prompts
    assert settings_of(whole.out / "configured")["vision_prompts"]["depth"] == 2
    settings = settings_of(whole.out / "tower_0.01")
    assert (settings["fine_tune"], settings["vision_prompts"]["depth"]) == (True, 0)
    assert (settings["optim"]["optimizer"], settings["optim"]["lr"]) == ("adamw", 0.01)

    # the best
    curves = {name: curves_of(whole.out / name) for name in NAMES[:2]}
    last = {name: (c["val/fidelity"][-1][1], -c["val/kl"][-1][1]) for name, c in curves.items()}
    best = max((name for name in last if last[name][1] >= last["configured"][1]), key=last.get)
    chosen = yaml.safe_load((whole.out / "best.yaml").read_text())["model"]["init_args"]
    wanted = settings_of(whole.out / best)
    assert chosen == {name: wanted[name] for name in ("fine_tune", "vision_prompts", "optim")}

    # each was measured once, after its last epoch, on as many images, and needed no label
    for curve in curves.values():
        assert len(curve["val/fidelity"]) == 1
        assert curve["pool/unseen"][-1][1] == 100
        assert [epoch for _, epoch in curve["epoch"]][-1] == 1
        assert "val/acc" not in curve

    # finished candidates are not fitted again, and one that diverges is no candidate
    stage = whole.run()
    said = capsys.readouterr()
    assert said.err.count("is finished: nothing to do") == 2
    assert f"{best} is chosen" in said.out
    assert "tower_1e+30 is left out: " in said.err
    rows = re.findall(r"^\| (\w[\w.+]+) \| ([\d.]+) \| ([\d.]+) \|$", said.out, re.MULTILINE)
    assert {name: (float(share), float(kl)) for name, share, kl in rows} == {
        name: (round(100 * share, 1), round(-kl, 3)) for name, (share, kl) in last.items()
    }

    # the student is that candidate, as it is with its settings after the config
    assert stage.config.model.init_args.optim.as_dict() == wanted["optim"]
    stage = parse_stage("fit", [*whole.student, f"--config={whole.out}/best.yaml", "--out=fit"])
    assert stage.config.model.init_args.optim.as_dict() == wanted["optim"]


def test_candidates_are_of_the_same_images(whole):
    image = sorted((whole.out.parent / "data").rglob("*.png"))[7]
    before, status = image.read_bytes(), image.stat()
    noise(9, 9).save(image)
    # the one that diverges is fitted at each start
    file = whole.out / "tower_1e+30/checked_images.json"
    with refused(DataError, rf"images have changed since {re.escape(str(file))} was written"):
        whole.run()
    image.write_bytes(before)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    whole.run()


def test_more_agreement_further_from_the_target_is_not_chosen():
    configured = {"configured": (0.58, -0.85)}
    assert best_of({**configured, "tower": (0.59, -1.01)}) == "configured"
    assert best_of({**configured, "tower": (0.59, -0.8)}) == "tower"
    assert best_of({**configured, "tower": (0.58, -0.8), "far": (0.7, -0.9)}) == "tower"


def test_a_search_of_other_settings_is_refused(whole):
    before = (whole.out / "best.yaml").read_bytes()
    said = r"configured was made from something else \(model.init_args.optim"
    with refused(ConfigError, said):
        whole.run("--model.init_args.optim.lr=0.0001")
    assert (whole.out / "best.yaml").read_bytes() == before


def test_each_candidate_measures_its_fidelity_once_also_where_the_student_does(tmp_path):
    for more in ([], configs("student/fidelity.yaml")):
        given = [*DATA, *STUDENTS, *more, TEACHER_T, f"--out={tmp_path}"]
        for candidate in candidates_of(parse_stage("fit", given), tmp_path, rates=[0.1]).values():
            paths = [callback.class_path for callback in candidate.config.trainer.callbacks]
            paths = [path for path in paths if path.endswith("Fidelity")]
            assert paths == ["kdpl.targets.fidelity.Fidelity"]


def test_a_run_asks_the_search_until_its_student_has_trained_what_it_finds(tmp_path, monkeypatch):
    asked = []

    def compare(student, candidates, out, decoded):
        asked.append([*candidates])
        best = {"model": {"init_args": {"optim": {"lr": 0.001 * len(asked)}}}}
        write_text(Path(out, "best.yaml"), json.dumps(best))
        return student.derive(best)

    monkeypatch.setattr("kdpl.cli.search.compare", compare)
    command = ["run", *DATA, *STAGES, *SHORT, f"--out={tmp_path}", "--search", "--shots=0"]
    command.append("--data.init_args.unlabeled_share=0.1")
    with interrupted_at(2):
        assert main(command) == 130
    assert asked == [["configured", "tower_0.0001", "tower_0.0003", "tower_0.001"]]
    # what it has found does not stand for what it would find now
    assert main(command) == 0
    assert settings_of(tmp_path / "student")["optim"]["lr"] == 0.002
    assert main(command) == 0
    assert len(asked) == 2


def test_other_rates_are_searched_and_epochs_must_be_known(tmp_path, monkeypatch, capsys):
    asked = []

    def compare(student, candidates, *_):
        asked.extend(candidates)
        raise KeyboardInterrupt

    monkeypatch.setattr("kdpl.cli.search.compare", compare)
    command = ["run", *DATA, *STAGES, *SHORT, f"--out={tmp_path}", "--shots=0"]
    assert main([*command, "--search", "3e-6", "1e-5"]) == 130
    assert asked == ["configured", "tower_3e-06", "tower_1e-05"]
    assert main([*command, "--search", "--trainer.max_epochs=-1"]) == 1
    error_line(capsys, "set trainer.max_epochs")
    assert main([*command, "--search", "fast"]) == 1
    error_line(capsys, "--search", "fast")

import json
import socket
import threading

import pytest
import wandb
import yaml
from kdpl.runtime.wandb_artifacts import artifact_name
from kdpl.runtime.wandb_steps import LoggedSteps
from runs import DATA, SHORT, STUDENT, configs, fit_student, fit_teacher, rows_of, soon, start_process, wait_for
from runs import test as run_test
from wandb_files import closed, history, of_kind, offline, records
from world import one_sentence

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.errors import ConfigError
from kdpl.runtime.loggers import METRICS_FILE
from kdpl.runtime.predictions import read_predictions, read_results
from kdpl.runtime.wandb_logger import RunWandbLogger, point_loggers

LOGGER = configs("logger/wandb.yaml")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A folder in which a teacher and its student were fitted and tested with W&B offline; no test changes it."""
    root = tmp_path_factory.mktemp("tracked")
    work = root / "work"
    work.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        offline(monkeypatch, root / "home")
        monkeypatch.chdir(work)
        assert fit_teacher(root / "runs/teacher", *LOGGER) == 0
        assert run_test(root / "runs/teacher") == 0
        assert fit_student(root / "runs/student", root / "runs/teacher", *LOGGER) == 0
        assert run_test(root / "runs/student") == 0
    return root


def found_in(run):
    """The records of a run's processes, in order."""
    return [record for file in sorted(run.rglob("*.wandb")) for record in closed(file)]


def config_of(found):
    """The config that the run ends with."""
    updates = [update for config in of_kind(found, "config") for update in config.update]
    config = {}
    for update in updates:
        config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return config


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_fit_and_test_are_one_run_with_one_config_and_the_numbers_of_its_folder(stage, tracked):
    run = tracked / "runs" / stage
    found = found_in(run)
    runs = of_kind(found, "run")
    assert {r.run_id for r in runs} == {(run / "wandb_id").read_text()}
    assert (runs[0].project, runs[0].display_name) == ("kdpl", f"runs/{stage}")

    values = [{u.key: json.loads(u.value_json) for u in c.update} for c in of_kind(found, "config")]
    values = [value for value in values if "model" in value]
    assert len(values) == 1, "the config is logged once"
    assert values[0] == yaml.safe_load((run / "config.yaml").read_text())

    rows = history(found)
    for name in ("train/loss", "val/acc", "test/acc"):
        logged = [row[name] for row in rows if name in row]
        assert logged == [float(row[name]) for row in rows_of(run / METRICS_FILE) if row[name]], name
        assert logged
    assert [row["test/acc"] for row in rows if "test/acc" in row] == [read_results(run)["test/acc"]]


def test_nothing_is_written_outside_the_runs_folders(tracked):
    assert list((tracked / "work").iterdir()) == []
    assert {p.name for p in (tracked / "runs").iterdir()} == {"teacher", "student"}
    # artifacts are read from the run's folder, not from copies in the home folder
    assert not list((tracked / "home").rglob("*.safetensors"))


def test_the_test_is_logged_at_the_step_where_the_fit_ended(tracked):
    rows = history(found_in(tracked / "runs/student"))
    steps = [row["trainer/global_step"] for row in rows if "trainer/global_step" in row]
    assert steps == sorted(steps)
    (tested,) = [row["trainer/global_step"] for row in rows if "test/acc" in row]
    assert tested == max(row["trainer/global_step"] for row in rows if "train/loss" in row) > 0


def test_the_teachers_run_makes_teacher_and_class_vectors(tracked):
    run = tracked / "runs/teacher"
    vectors = ClassVectors.load(run / "class_vectors.safetensors")
    teacher, made = of_kind(found_in(run), "artifact")
    assert (teacher.type, teacher.name) == ("teacher", artifact_name("teacher", vectors.teacher))
    assert (made.type, made.name) == ("class-vectors", artifact_name("class-vectors", vectors.teacher))
    assert [c.path for a in (teacher, made) for c in a.manifest.contents] == [
        "prompts.safetensors",
        "class_vectors.safetensors",
    ]
    assert set(made.aliases) == {"latest", (run / "wandb_id").read_text()}
    assert not teacher.use_after_commit
    assert not made.use_after_commit
    said = json.loads(made.metadata)
    assert said["made_with"] == teacher.name
    assert (said["teacher"], said["num_classes"], said["class_names"]) == (
        vectors.teacher,
        10,
        list(vectors.class_names),
    )
    assert said["val/acc"] == [float(row["val/acc"]) for row in rows_of(run / METRICS_FILE) if row["val/acc"]][-1]


def test_the_students_run_uses_those_very_class_vectors_and_makes_the_classifier(tracked):
    (made,) = [a for a in of_kind(found_in(tracked / "runs/teacher"), "artifact") if a.type == "class-vectors"]
    run = tracked / "runs/student"
    found = found_in(run)
    used, classifier = of_kind(found, "artifact")
    assert used.use_after_commit
    assert (used.type, used.name, used.digest) == (made.type, made.name, made.digest)
    assert config_of(found)["inputs"]["class-vectors"] == {
        "artifact": made.name,
        "digest": made.digest,
        "teacher": json.loads(made.metadata)["teacher"],
        "num_classes": 10,
    }
    assert not classifier.use_after_commit
    assert (classifier.type, classifier.name) == ("classifier", f"classifier-{(run / 'wandb_id').read_text()}")
    assert {c.path for c in classifier.manifest.contents} == {p.name for p in (run / "classifier").iterdir()}
    said = json.loads(classifier.metadata)
    assert (said["made_with"], said["num_classes"], said["clip"]["model"]) == (made.name, 10, "tiny-student")
    assert 0 < said["val/acc"] <= 1


def test_images_on_which_teacher_and_student_disagree_are_shown_with_both_answers(tracked):
    run = tracked / "runs/student"
    rows = history(found_in(run))
    (captions,) = [row["disagreements/captions"] for row in rows if "disagreements/captions" in row]
    teacher = {a.index: a for a in read_predictions(tracked / "runs/teacher")}
    different = [(teacher[a.index], a) for a in read_predictions(run) if teacher[a.index].prediction != a.prediction]
    assert 0 < len(captions) <= min(30, len(different))
    expected = {
        f"{t.label}: T {t.prediction} {100 * t.probability:.0f} %, S {s.prediction} {100 * s.probability:.0f} %"
        for t, s in different
    }
    assert set(captions) <= expected
    assert len(list(run.rglob("media/images/disagreements*.png"))) == len(captions)
    pictures = {name.split("/filenames")[0] for row in rows for name in row if name.startswith("figures/")}
    assert {
        "figures/learning_curves",
        "figures/confusion",
        "figures/test_images",
        "figures/disagreements",
    } <= pictures


def test_disabled_it_logs_nothing_and_breaks_nothing(tmp_path, monkeypatch, teacher_run):
    offline(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    assert fit_student(tmp_path / "out", teacher_run, "--trainer.max_epochs=1", *LOGGER) == 0
    assert (tmp_path / "out/classifier").is_dir()
    assert not list(tmp_path.rglob("*.wandb"))
    wandb.teardown()


@pytest.mark.skipif(
    "x_transaction_log_flush_interval" not in wandb.Settings.model_fields,
    reason="before wandb 0.31 a short run's file is empty until the run ends",
)
def test_a_killed_fit_goes_on_in_its_run_without_doubled_steps(tmp_path, monkeypatch, teacher_run):
    offline(monkeypatch, tmp_path / "home")
    out = tmp_path / "out"
    fit = ["fit", *DATA, *STUDENT, *SHORT, *LOGGER, f"--model.init_args.teacher={teacher_run}", f"--out={out}"]
    fit += ["--trainer.max_epochs=60", "--trainer.num_sanity_val_steps=0", "--checkpoint_every=4"]
    # or the process would share the one in which this one's W&B runs
    wandb.teardown()
    process = start_process(fit)

    def rows_before():
        return [row for file in out.glob("wandb/offline-*/*.wandb") for row in history(records(file))]

    def logged():
        assert process.poll() is None, process.stderr.read()
        return (out / "checkpoints/last.ckpt").is_file() and any("val/acc" in row for row in rows_before())

    wait_for(logged, 120)
    process.kill()
    process.wait()
    process.stderr.close()
    assert not (out / "classifier").exists(), "it was to be killed before its end"
    before = rows_before()
    assert main(fit) == 0

    first, second = sorted(out.glob("wandb/offline-*/*.wandb"))
    found = [*records(first), *closed(second)]
    assert {r.run_id for r in of_kind(found, "run")} == {(out / "wandb_id").read_text()}
    rows = history(found)
    assert rows[: len(before)] == before
    for name in ("train/loss", "val/acc"):
        steps = [row["trainer/global_step"] for row in rows if name in row]
        expected = [3 * epoch + 2 for epoch in range(60)]
        # what was logged in the last second before the kill may be lacking
        assert steps == [step for step in expected if step in steps], name
        assert steps[:1] + steps[-4:] == expected[:1] + expected[-4:], name


def test_steps_that_were_logged_are_not_logged_again_by_a_fit_alone(tmp_path):
    first = LoggedSteps(tmp_path, fitting=True)
    for step in (1, 2, 3):
        row, at = first.new({"train/loss": 1.0, "epoch": 0}, step)
        assert (row, at) == ({"train/loss": 1.0, "epoch": 0}, step)
        first.keep(row, at)
    again = LoggedSteps(tmp_path, fitting=True)
    assert again.new({"train/loss": 1.0, "epoch": 0}, 3) == ({}, 3)
    assert again.new({"train/loss": 1.0, "val/acc": 0.5, "epoch": 0}, 3) == ({"val/acc": 0.5, "epoch": 0}, 3)
    assert again.new({"train/loss": 1.0}, 4) == ({"train/loss": 1.0}, 4)
    for _ in range(2):
        assert LoggedSteps(tmp_path, fitting=False).new({"test/acc": 0.5}, 0) == ({"test/acc": 0.5}, 3)


@pytest.fixture
def silent_server():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def accept():
            while True:
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def without_a_server(monkeypatch, tmp_path, url, key):
    offline(monkeypatch, tmp_path / "home")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", url)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    # the client reads its environment once
    wandb.teardown()


@pytest.mark.parametrize("key", ["0" * 40, None], ids=["with a key", "without a key"])
def test_a_server_that_does_not_answer_ends_no_training(key, tmp_path, monkeypatch, silent_server, capfd):
    without_a_server(monkeypatch, tmp_path, silent_server, key)
    monkeypatch.setattr("kdpl.runtime.wandb_logger._ANSWER_SECONDS", 1)
    out = tmp_path / "out"
    with soon():
        with pytest.warns(UserWarning, match=r"the run goes on offline, send it later with wandb sync"):
            assert fit_teacher(out, "--trainer.max_epochs=1", *LOGGER) == 0
        wandb.teardown()
    assert (out / "class_vectors.safetensors").is_file()
    (file,) = out.rglob("*.wandb")
    assert file.parent.name.startswith("offline-run-")
    assert [row["train/loss"] for row in history(closed(file)) if "train/loss" in row]


@pytest.fixture
def rejecting_server():
    """The address of a server that answers and lets nobody in."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Reject(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reject)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("key", ["0" * 40, None], ids=["with a wrong key", "without a key"])
def test_who_is_not_let_in_goes_on_offline(key, tmp_path, monkeypatch, rejecting_server):
    without_a_server(monkeypatch, tmp_path, rejecting_server, key)
    logger = RunWandbLogger(save_dir=str(tmp_path), id="abc", project="kdpl")
    with pytest.warns(UserWarning, match=r"the run goes on offline"):
        run = logger.experiment
    assert run.offline
    assert run.id == "abc"
    run.finish()
    wandb.teardown()


def test_settings_that_wandb_refuses_are_named_in_one_sentence(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path / "home")
    wandb.teardown()
    with pytest.raises(ConfigError, match="correct the logger's settings") as error:
        RunWandbLogger(save_dir=str(tmp_path), id="a/b", project="kdpl").experiment  # noqa: B018
    assert one_sentence(error)
    wandb.teardown()


def settings_of(folder, monkeypatch, **environment):
    from jsonargparse import Namespace

    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Namespace(save_dir=".", id=None, project=None, name=None)
    logger = Namespace(class_path="kdpl.runtime.wandb_logger.RunWandbLogger", init_args=settings)
    point_loggers([logger], folder, keep=True)
    return settings.project, settings.name, settings.id


def test_project_name_and_id_of_the_environment_are_taken_and_the_id_is_kept(tmp_path, monkeypatch):
    given = {"WANDB_PROJECT": "pets", "WANDB_NAME": "third try", "WANDB_RUN_ID": "r7"}
    out = tmp_path / "a/b"
    assert settings_of(out, monkeypatch, **given) == ("pets", "third try", "r7")
    assert settings_of(out, monkeypatch) == ("kdpl", "a/b", "r7")
    assert settings_of(out, monkeypatch, WANDB_RUN_ID="other")[2] == "r7"
    assert settings_of(tmp_path / "c", monkeypatch)[2] not in (None, "r7")

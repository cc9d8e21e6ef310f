import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb
import world
import yaml
from jsonargparse import Namespace
from runs import configs, fit_student, fit_teacher, rows_of
from runs import test as run_test
from wandb_files import closed, history, of_kind, offline

from kdpl.class_vectors import ClassVectors
from kdpl.errors import ConfigError
from kdpl.runtime.predictions import read_predictions, read_results
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, CONFIG_FILE, METRICS_FILE, PROMPTS_FILE
from kdpl.runtime.wandb_logger import ID_FILE, RunWandbLogger, artifact_name, point_loggers

LOGGER = configs("logger/wandb.yaml")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A folder in which a teacher and its student were fitted and tested with W&B offline; no test changes it."""
    root = tmp_path_factory.mktemp("tracked")
    (root / "work").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        offline(monkeypatch, root / "home")
        monkeypatch.chdir(root / "work")
        assert fit_teacher(root / "runs/teacher", *LOGGER) == 0
        assert run_test(root / "runs/teacher") == 0
        assert fit_student(root / "runs/student", root / "runs/teacher", *LOGGER) == 0
        assert run_test(root / "runs/student") == 0
    # nothing is written outside the runs' folders, and artifacts are read from there
    assert list((root / "work").iterdir()) == []
    assert {p.name for p in (root / "runs").iterdir()} == {"teacher", "student"}
    assert not list((root / "home").rglob("*.safetensors"))
    return root


def records_of(run):
    """The records of a run's processes, in order."""
    return [record for file in sorted(run.rglob("*.wandb")) for record in closed(file)]


def logged(run, name):
    """The values of a metric in metrics.csv."""
    return [float(row[name]) for row in rows_of(run / METRICS_FILE) if row[name]]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_fit_and_test_are_one_run_with_one_config_and_the_numbers_of_its_folder(stage, tracked):
    run = tracked / "runs" / stage
    found = records_of(run)
    runs = of_kind(found, "run")
    assert {r.run_id for r in runs} == {(run / ID_FILE).read_text()}
    assert (runs[0].project, runs[0].display_name) == ("kdpl", f"runs/{stage}")

    values = [{u.key: json.loads(u.value_json) for u in c.update} for c in of_kind(found, "config")]
    values = [value for value in values if "model" in value]
    assert values == [yaml.safe_load((run / CONFIG_FILE).read_text())], "the config is logged once"

    rows = history(found)
    for name in ("train/loss", "val/acc", "test/acc"):
        assert [row[name] for row in rows if name in row] == logged(run, name) != [], name
    assert logged(run, "test/acc") == [read_results(run)["test/acc"]]


def test_artifacts_say_what_was_made_with_what(tracked):
    run = tracked / "runs/teacher"
    vectors = ClassVectors.load(run / CLASS_VECTORS_FILE)
    teacher, made = of_kind(records_of(run), "artifact")
    assert (teacher.type, teacher.name) == ("teacher", artifact_name("teacher", vectors.teacher))
    assert (made.type, made.name) == ("class-vectors", artifact_name("class-vectors", vectors.teacher))
    files = [content.path for artifact in (teacher, made) for content in artifact.manifest.contents]
    assert files == [PROMPTS_FILE, CLASS_VECTORS_FILE]
    assert set(made.aliases) == {"latest", (run / ID_FILE).read_text()}
    metadata = json.loads(made.metadata)
    assert metadata["made_with"] == teacher.name
    assert (metadata["teacher"], metadata["num_classes"]) == (vectors.teacher, 10)
    assert metadata["val/acc"] == logged(run, "val/acc")[-1]

    run = tracked / "runs/student"
    found = records_of(run)
    (classifier,) = of_kind(found, "artifact")
    # offline the config alone says that the run used those very class vectors
    updates = [update for config in of_kind(found, "config") for update in config.update]
    config = {"/".join(update.nested_key) or update.key: json.loads(update.value_json) for update in updates}
    about = {"teacher": vectors.teacher, "num_classes": 10}
    assert config["inputs"]["class-vectors"] == {"artifact": made.name, "digest": made.digest, **about}
    assert (classifier.type, classifier.name) == ("classifier", f"classifier-{(run / ID_FILE).read_text()}")
    assert {c.path for c in classifier.manifest.contents} == {p.name for p in (run / CLASSIFIER_FOLDER).iterdir()}
    metadata = json.loads(classifier.metadata)
    assert (metadata["made_with"], metadata["clip"]["model"]) == (made.name, "tiny-student")
    assert 0 < metadata["val/acc"] <= 1


def test_images_on_which_teacher_and_student_disagree_are_shown_with_both_predictions(tracked):
    run = tracked / "runs/student"
    rows = history(records_of(run))
    (captions,) = [row["disagreements/captions"] for row in rows if "disagreements/captions" in row]
    teacher = {p.index: p for p in read_predictions(tracked / "runs/teacher")}
    different = [(teacher[p.index], p) for p in read_predictions(run) if teacher[p.index].prediction != p.prediction]
    assert 0 < len(captions) <= min(30, len(different))
    assert set(captions) <= {
        f"{t.label}: T {t.prediction} {100 * t.probability:.0f} %, S {s.prediction} {100 * s.probability:.0f} %"
        for t, s in different
    }
    assert len(list(run.rglob("media/images/disagreements*.png"))) == len(captions)
    pictures = {name.split("/filenames")[0] for row in rows for name in row if name.startswith("figures/")}
    expected = {f"figures/{name}" for name in ("learning_curves", "confusion", "test_images", "disagreements")}
    assert expected <= pictures


def test_disabled_it_logs_nothing_and_breaks_nothing(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1", *LOGGER) == 0
    assert (tmp_path / "out" / CLASS_VECTORS_FILE).is_file()
    assert not list(tmp_path.rglob("*.wandb"))
    wandb.teardown()


@pytest.fixture
def silent():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        # the system accepts them, nobody reads them
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def rejecting():
    """The address of a server that answers and lets nobody in."""

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


@pytest.mark.parametrize(
    ("server", "key"),
    [("silent", "0" * 40), ("silent", None), ("rejecting", "0" * 40), ("rejecting", None)],
)
def test_if_a_server_cannot_be_used_the_run_is_logged_offline(server, key, tmp_path, monkeypatch, request, capsys):
    offline(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(server))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    # the client reads its environment once
    wandb.teardown()
    run = RunWandbLogger(save_dir=str(tmp_path), id="abc", project="kdpl").experiment
    assert run.offline
    assert run.id == "abc"
    run.finish()
    wandb.teardown()
    assert "the run is logged offline, send it later with wandb sync" in capsys.readouterr().err


def test_settings_that_wandb_refuses_are_one_sentence(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path / "home")
    wandb.teardown()
    with world.refused(ConfigError, "correct the logger's settings"):
        _ = RunWandbLogger(save_dir=str(tmp_path), id="a/b", project="kdpl").experiment
    wandb.teardown()


def test_project_name_and_id_of_the_environment_are_used_and_the_id_is_kept(tmp_path, monkeypatch):
    def settings_of(folder, **environment):
        for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = Namespace(save_dir=".", id=None, project=None, name=None)
        logger = Namespace(class_path="kdpl.runtime.wandb_logger.RunWandbLogger", init_args=settings)
        point_loggers([logger], folder, keep=True)
        return settings.project, settings.name, settings.id

    given = {"WANDB_PROJECT": "pets", "WANDB_NAME": "third try", "WANDB_RUN_ID": "r7"}
    assert settings_of(tmp_path / "a/b", **given) == ("pets", "third try", "r7")
    assert settings_of(tmp_path / "a/b") == ("kdpl", "a/b", "r7")
    assert settings_of(tmp_path / "a/b", WANDB_RUN_ID="other")[2] == "r7"
    assert settings_of(tmp_path / "c")[2] not in (None, "r7")

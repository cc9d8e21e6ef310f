import json
import shutil

import published_files as files
import pytest
import runs
import torch
import world
import yaml
from plain import PlainProjector, normalized, prompt_text, relative_error

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, load_clip
from kdpl.clip.modules import cosine_logits
from kdpl.data import DomainDataModule
from kdpl.data.readers.digits import CLASS_NAMES
from kdpl.prompts.tuned import TunedPrompts

half = pytest.mark.parametrize("imported", ["half"], indirect=True)


@pytest.fixture
def teacher_file(tmp_path):
    return files.write(tmp_path / "teacher.pth", files.teacher_state())


def test_predictions_are_those_of_what_was_trained_before_the_file_rounded_it(imported, plain_of, images):
    tolerance = 1e-3 if imported.name.startswith("half") else 1e-5
    teacher, student, drawn = plain_of(files.TEACHER), plain_of(files.STUDENT), files.originals()
    expected = normalized(
        teacher.text_features([prompt_text("a photo of a", name) for name in CLASS_NAMES], drawn.text)
    )
    vectors = ClassVectors.load(imported / "teacher/class_vectors.safetensors")
    assert vectors.class_names == CLASS_NAMES
    assert relative_error(vectors.vectors, expected) < tolerance

    clip = load_clip(ClipConfig(files.TEACHER, world.TAG))
    prompts = TunedPrompts.load(imported / "teacher/prompts.safetensors").restore(clip)
    features = prompts.encode_images(clip.image_tower, images)
    logits = cosine_logits(features, vectors.vectors, vectors.logit_scale)
    features = normalized(teacher.image_features(images, drawn.vision))
    assert relative_error(logits, teacher.scale * features @ expected.T) < tolerance

    logits = Classifier.load(imported / "student/classifier")(images)
    projector = PlainProjector(drawn.projector)
    features = normalized(projector(student.image_features(images, drawn.student), training=False))
    assert relative_error(logits, student.scale * features @ expected.T) < tolerance


@half
def test_a_folder_holds_what_fit_leaves_and_which_file_it_was(imported):
    for name, handed_over in (
        ("teacher", ["class_vectors.safetensors", "prompts.safetensors"]),
        ("student", ["class_vectors.safetensors", "classifier/classifier.json", "classifier/model.safetensors"]),
    ):
        expected = {"config.yaml", "checkpoints/last.ckpt", "import.json", *handed_over}
        assert runs.files_of(imported / name).keys() - {"metrics.csv", ".lock"} == expected
    record = json.loads((imported / "teacher/import.json").read_text())
    assert (record["file"], len(record["sha256"])) == ("teacher.pth", 64)
    state = torch.load(imported / "teacher/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    prompts = TunedPrompts.load(imported / "teacher/prompts.safetensors").tensors
    assert len(state) == len(prompts)
    assert all(torch.equal(state[f"prompts.{k}"], v) and v.dtype == torch.float32 for k, v in prompts.items())
    state = torch.load(imported / "student/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in Classifier.load(imported / "student/classifier").encoder.state_dict().items():
        assert torch.equal(state[f"encoder.{name}"], tensor)


def test_a_finished_import_is_finished_and_another_file_is_refused(importer, teacher_file, tmp_path, capsys):
    out = tmp_path / "teacher"
    assert importer("teacher", teacher_file, out) == 0
    before = runs.files_of(out)
    for again in (
        lambda: importer("teacher", teacher_file, out),
        lambda: main(["fit", f"--config={out}/config.yaml"]),
    ):
        capsys.readouterr()
        assert again() == 0
        assert f"{out} is finished: nothing to do" in capsys.readouterr().err
    other = files.write(tmp_path / "other.pth", {**files.teacher_state(), "more": torch.ones(1)})
    assert importer("teacher", other, out) == 1
    assert f"{out} holds something other than the import of {other}" in capsys.readouterr().err
    assert runs.files_of(out) == before


def test_a_folder_of_a_trained_run_is_refused(importer, teacher_file, tmp_path, capsys):
    out = tmp_path / "teacher"
    assert main(["fit", *importer.settings["teacher"], *runs.SHORT, *runs.AVERAGING, f"--out={out}"]) == 0
    before = runs.files_of(out)
    assert importer("teacher", teacher_file, out) == 1
    assert f"{out} holds a run with other settings" in capsys.readouterr().err
    assert runs.files_of(out) == before


@half
@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_an_interrupted_import_is_resumed(kind, importer, imported, tmp_path):
    out = shutil.copytree(imported / kind, tmp_path / kind)
    shutil.rmtree(out / "classifier", ignore_errors=True)
    (out / "class_vectors.safetensors").unlink()
    more = [f"--model.init_args.teacher={imported / 'teacher'}"] if kind == "student" else []
    assert importer(kind, imported / f"{kind}.pth", out, *more) == 0
    after, whole = runs.files_of(out), runs.files_of(imported / kind)
    assert after.keys() - {"metrics.csv", ".lock"} == whole.keys() - {"metrics.csv", ".lock"}
    for part in whole.keys() & {"prompts.safetensors", "class_vectors.safetensors", "classifier/model.safetensors"}:
        assert after[part][1] == whole[part][1]


@pytest.mark.slow
def test_run_resumes_from_an_imported_teacher(tmp_path):
    teacher, student = tmp_path / "run/teacher", tmp_path / "run/student"
    file = files.write(tmp_path / "tiny.pth", files.teacher_state(name="tiny-teacher"))
    depth = f"--model.init_args.vision_prompts.depth={files.VISION_DEPTH}"
    assert main(["import", "teacher", str(file), *runs.DATA, *runs.TEACHER, depth, f"--out={teacher}"]) == 0
    imported = runs.files_of(teacher)
    stages = [arg.replace("--config", "--teacher") for arg in runs.TEACHER]
    stages += [arg.replace("--config", "--student") for arg in runs.STUDENT]
    run = ["run", *runs.DATA, *stages, *runs.SHORT, "--trainer.max_epochs=1", f"--out={tmp_path / 'run'}"]
    assert main(run) == 0
    # it is as it was, and tested; the student comes from it
    for name in ("prompts.safetensors", "class_vectors.safetensors", "import.json"):
        assert runs.files_of(teacher)[name] == imported[name]
    for stage in (teacher, student):
        assert json.loads((stage / "test.json").read_text())["images"] == 899
    vectors = ClassVectors.load(teacher / "class_vectors.safetensors")
    assert Classifier.load(student / "classifier").vectors.teacher == vectors.teacher


@half
def test_an_imported_student_is_tested_as_it_is(imported, tmp_path):
    student = imported / "student"
    checkpoint = f"--ckpt_path={student}/checkpoints/last.ckpt"
    assert main(["test", f"--config={student}/config.yaml", checkpoint, f"--out={tmp_path}"]) == 0
    classifier, data = Classifier.load(student / "classifier"), DomainDataModule("digits", num_workers=0)
    batches = data.evaluation_dataloader_for("test", 32)
    right = sum(int((classifier(images).argmax(1) == labels).sum()) for images, labels, _ in batches)
    assert json.loads((tmp_path / "test.json").read_text())["test/acc"] == pytest.approx(right / 899, abs=1e-3)


def test_the_teacher_needs_no_training_images(importer, teacher_file, tmp_path):
    # two images of a class are fewer than the 16 shots that a fit asks for
    root = runs.image_folder(tmp_path / "images", images=2)
    data = ["--data.init_args.dataset=folder", f"--data.init_args.root={root}"]
    assert importer("teacher", teacher_file, tmp_path / "t", *data) == 0
    assert ClassVectors.load(tmp_path / "t/class_vectors.safetensors").class_names == ("cat", "dog")
    assert main(["fit", *importer.settings["teacher"], *data, *runs.SHORT, f"--out={tmp_path / 'u'}"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_epochs=3", "--trainer.fast_dev_run=true", "--trainer.limit_train_batches=2"],
        ["--trainer.precision=bf16-mixed"],
        ["--trainer.precision=bf16-true"],
    ],
    ids=["training", "bf16-mixed", "bf16-true"],
)
def test_nothing_is_trained_or_rounded_whatever_the_settings_say(options, importer, teacher_file, tmp_path):
    assert importer("teacher", teacher_file, tmp_path / "t", *options) == 0
    tokens = TunedPrompts.load(tmp_path / "t/prompts.safetensors").tensors["vision_prompts.tokens"]
    assert torch.equal(tokens, files.originals().vision.half().float())
    config = yaml.safe_load((tmp_path / "t/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 0
    assert config["model"]["init_args"]["averaging"] is None


def test_names_without_a_place_are_listed_and_left_out(importer, tmp_path, capsys):
    more = {f"something.else{i}": torch.zeros(2) for i in range(6)} | {"image_encoder.attnpool.weight": torch.zeros(2)}
    file = files.write(tmp_path / "more.pth", {**files.teacher_state(), **more})
    assert importer("teacher", file, tmp_path / "teacher") == 0
    assert "no place here: 7 tensors (image_encoder.attnpool.weight, something.else0, " in capsys.readouterr().err
    assert (tmp_path / "teacher/class_vectors.safetensors").exists()


@half
@pytest.mark.parametrize(
    ("kind", "file", "options", "words"),
    [
        ("student", "teacher", [], ["expected a student: use the command import teacher"]),
        ("teacher", "student", [], ["expected a teacher: use the command import student"]),
        ("teacher", "teacher", ["vision_prompts.depth=2"], ["vision_prompts.depth to 3"]),
        ("teacher", "teacher", ["vision_prompts.depth=0"], ["prompts.length to 4 and", "vision_prompts.depth to 3"]),
        ("teacher", "teacher", ["vision_prompts.length=2"], ["vision_prompts.length to 4"]),
        ("teacher", "teacher", ["text_prompts.depth=1"], ["text_prompts.depth to 2"]),
        # the student's text tower has one layer: no deep prompts in it
        ("teacher", "teacher", [f"clip.model={files.STUDENT}", "text_prompts.depth=1"], ["made on another CLIP"]),
        ("teacher", "teacher", ["method=coupled"], ["model.init_args.method is 'coupled': set it to independent"]),
        (
            "student",
            "student",
            ["teacher={other}"],
            ["[24, 20], the settings need [20, 20]", "model.init_args.teacher"],
        ),
        ("student", "student", ["text_features=student"], ["a projector, the settings ask for a student without one"]),
        ("student", "student", ["teacher=null"], ["teacher"]),
        ("teacher", "damaged", [], ["is damaged", "fetch it again"]),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    kind, file, options, words, importer, imported, tmp_path, capsys
):
    world.write_teacher(tmp_path, files.STUDENT, class_names=CLASS_NAMES, num_base=None)
    (tmp_path / "damaged.pth").write_bytes((imported / "teacher.pth").read_bytes()[:-100])
    teacher = [f"teacher={imported / 'teacher'}"] if kind == "student" else []
    more = [f"--model.init_args.{each.format(other=tmp_path)}" for each in (*teacher, *options)]
    path = (tmp_path if file == "damaged" else imported) / f"{file}.pth"
    assert importer(kind, path, tmp_path / "out", *more) == 1
    runs.error_line(capsys, *words)
    assert runs.files_of(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "kind"),
        (["teacher"], "file"),
        (["pupil", "f"], "pupil"),
        (["teacher", "none.pth", "--out=x"], "none.pth does not exist: check the path"),
        (["teacher", __file__], "import needs the settings of a fit"),
        (["teacher", __file__, "--config=none.yaml"], "config none.yaml does not exist"),
        (
            ["teacher", __file__, *runs.DATA, *runs.STUDENT, "--model.init_args.teacher=t"],
            "expected those of a teacher",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(args, word, capsys):
    assert main(["import", *args]) == 1
    runs.error_line(capsys, word)

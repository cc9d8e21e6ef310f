import json
import math
import shutil

import published_files as files
import pytest
import runs
import torch
import yaml
from plain import PlainProjector, normalized, prompt_text, relative_error
from world import TAG, refused, write_teacher

from kdpl.__main__ import main
from kdpl.benchmark.checkpoints import read_published, require_same_clip
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.clip import ClipConfig, load_clip
from kdpl.clip.modules import cosine_logits
from kdpl.data.readers.digits import CLASS_NAMES
from kdpl.errors import ArtifactError, WeightsError
from kdpl.prompts.tuned import TunedPrompts

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32

# --- reading ---


def test_prompts_of_the_first_layer_alone_are_enough(tmp_path):
    whole = files.teacher_state()
    state = {name: whole[name] for name in ("prompt_learner.ctx", "image_encoder.VPT")}
    published = read_published(files.write(tmp_path / "f", state), "teacher")
    assert published.learned["vision_prompts.tokens"].shape == (1, 4, 48)
    assert published.learned["text_prompts.deep"].shape == (0, 4, 40)
    assert (published.clip, published.logit_scale) == ({}, None)


def test_a_missing_tensor_and_one_of_another_kind_are_named(tmp_path):
    whole = files.student_state()
    projector, deep = "VPT_image_trans.conv1", "image_encoder.transformer.resblocks.2.VPT_shallow"
    for name in (deep, f"{projector}.1.bias"):
        without = {other: tensor for other, tensor in whole.items() if other != name}
        with refused(ArtifactError, f"no tensor {name}: "):
            read_published(files.write(tmp_path / "f", without), "student")
    with refused(ArtifactError, "no tensor image_encoder.proj"):
        other = {**whole, "image_encoder.proj": "x"}
        read_published(files.write(tmp_path / "f", other), "student")


@pytest.mark.parametrize(
    "content", [[1], {"state_dict": {1: 2}}, {"state_dict": {"proj": torch.zeros(1)}}], ids=str
)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "f")
    with refused(ArtifactError, "has no state_dict|no prompts and no projector"):
        read_published(tmp_path / "f", "teacher")


# --- the CLIP that it was made on ---


@pytest.fixture
def compare(clip_of, tmp_path):
    """Compares a published teacher, one tensor of which was changed, with its CLIP."""
    clip = clip_of(files.TEACHER)
    towers = {"image": clip.image_tower.visual.state_dict(), "text": clip.text_tower.state_dict()}

    def run(dtype=HALF, name="logit_scale", change=lambda tensor: tensor, scale=30.0):
        state = files.teacher_state(dtype)
        state[name] = change(state.get(name))
        published = read_published(files.write(tmp_path / "f", state), "teacher")
        return require_same_clip(published, towers, math.log(scale))

    return run


def step(up):
    """Moves each number by ``up`` steps of its format."""
    return lambda tensor: (tensor.view(torch.int16) + up).view(tensor.dtype)


def times(factor):
    return lambda tensor: tensor * factor


@pytest.mark.parametrize("dtype", [HALF, BRAIN, FLOAT])
def test_the_clip_that_a_file_was_made_on_is_recognised_by_weights_off_by_rounding(dtype, compare):
    assert compare(dtype) == set()
    assert compare(dtype, "text_encoder.more", lambda _: torch.zeros(2)) == {"text_encoder.more"}
    for change in [times(1 + 1e-7)] if dtype == FLOAT else [step(1), step(-1)]:
        compare(dtype, "image_encoder.proj", change)


def test_other_weights_are_another_clip(compare):
    for dtype, name, change in (
        (HALF, "image_encoder.proj", step(2)),
        (BRAIN, "text_encoder.ln_final.bias", step(-2)),
        (FLOAT, "image_encoder.proj", times(1.003)),
        (FLOAT, "image_encoder.proj", times(math.nan)),
        (HALF, "image_encoder.class_embedding", lambda tensor: tensor[:5]),
    ):
        with refused(WeightsError, f"another CLIP than the settings name .{name} differs"):
            compare(dtype, name, change)
    with refused(WeightsError, "logit_scale"):
        compare(scale=31.0)


# --- importing ---


def settings(model, clip, depth, *more):
    """Settings of a fit that the file of a random CLIP fits."""
    prompts = f"vision_prompts={{length: {files.LENGTH}, depth: {depth}}}"
    more = (f"clip={{model: {clip}, pretrained: {TAG}}}", prompts, *more)
    options = [f"--model.init_args.{option}" for option in more]
    return [*runs.DATA, f"--model=kdpl.{model}", *options, "--trainer.max_epochs=20"]


TEXT = f"text_prompts={{length: {files.LENGTH}, depth: {files.TEXT_DEPTH}}}"
# averaging as configs in configs/teacher have it; importing leaves it aside
TEACHER = (files.TEACHER, files.VISION_DEPTH, TEXT, "averaging={mean: 15, std: 1}")
STUDENT = (files.STUDENT, files.STUDENT_DEPTH, "vision_prompts.init=mean_token")
SETTINGS = {
    "teacher": settings("TeacherPromptTuning", *TEACHER),
    "student": settings("StudentDistillation", *STUDENT),
}


def import_as(kind, file, out, *more):
    return main(["import", kind, str(file), *SETTINGS[kind], f"--out={out}", *more])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Folder of an imported teacher and student and their files; no test changes it."""
    folder = tmp_path_factory.mktemp("imported")
    teacher = files.write(folder / "teacher.pth", files.teacher_state(FLOAT))
    student = files.write(folder / "student.pth", files.student_state(FLOAT))
    assert import_as("teacher", teacher, folder / "teacher") == 0
    of_teacher = f"--model.init_args.teacher={folder / 'teacher'}"
    assert import_as("student", student, folder / "student", of_teacher) == 0
    return folder


def test_predictions_are_those_of_what_was_trained(imported, plain_of, images):
    teacher, student, drawn = plain_of(files.TEACHER), plain_of(files.STUDENT), files.originals()
    texts = [prompt_text("a photo of a", name) for name in CLASS_NAMES]
    expected = normalized(teacher.text_features(texts, drawn.text))
    vectors = ClassVectors.load(imported / "teacher/class_vectors.safetensors")
    assert vectors.class_names == CLASS_NAMES
    assert relative_error(vectors.vectors, expected) < 1e-5

    clip = load_clip(ClipConfig(files.TEACHER, TAG))
    prompts = TunedPrompts.load(imported / "teacher/prompts.safetensors").build_method(clip)
    features = prompts.encode_images(clip.image_tower, images)
    logits = cosine_logits(features, vectors.vectors, vectors.logit_scale)
    features = normalized(teacher.image_features(images, drawn.vision))
    assert relative_error(logits, teacher.scale * features @ expected.T) < 1e-5

    logits = Classifier.load(imported / "student/classifier")(images)
    projector = PlainProjector(drawn.projector)
    features = normalized(projector(student.image_features(images, drawn.student), training=False))
    assert relative_error(logits, student.scale * features @ expected.T) < 1e-5


def test_a_folder_holds_what_fit_leaves_and_which_file_it_was(imported):
    record = json.loads((imported / "teacher/import.json").read_text())
    assert (record["file"], len(record["sha256"])) == ("teacher.pth", 64)
    state = torch.load(imported / "teacher/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    prompts = TunedPrompts.load(imported / "teacher/prompts.safetensors").tensors
    assert len(state) == len(prompts)
    for name, tensor in prompts.items():
        assert torch.equal(state[f"prompts.{name}"], tensor)
        assert tensor.dtype == torch.float32
    state = torch.load(imported / "student/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    encoder = Classifier.load(imported / "student/classifier").encoder
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(state[f"encoder.{name}"], tensor)


def test_a_finished_import_is_finished_and_another_file_or_a_trained_run_is_refused(
    imported, tmp_path, capsys
):
    out = imported / "teacher"
    before = runs.files_of(out)
    import_again = import_as("teacher", imported / "teacher.pth", out)
    assert import_again == main(["fit", f"--config={out}/config.yaml"]) == 0
    assert capsys.readouterr().err.count(f"{out} is finished: nothing to do") == 2
    other = files.write(tmp_path / "other.pth", {**files.teacher_state(), "more": torch.ones(1)})
    # as an import leaves it, but for the note of the file
    trained = shutil.copytree(out, tmp_path / "teacher")
    (trained / "import.json").unlink()
    config = trained / "config.yaml"
    config.write_text(config.read_text().replace(str(imported), str(tmp_path)))
    copied = runs.files_of(trained)
    for file, folder in ((other, out), (imported / "teacher.pth", trained)):
        assert import_as("teacher", file, folder) == 1
        said = f"the run in {folder} was made from something else"
        assert said in capsys.readouterr().err
    for folder, files_before in ((out, before), (trained, copied)):
        # whose time changes whenever an older filelock takes it
        assert {**runs.files_of(folder), ".lock": 0} == {**files_before, ".lock": 0}


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_an_interrupted_import_is_resumed(kind, imported, tmp_path):
    out = shutil.copytree(imported / kind, tmp_path / kind)
    shutil.rmtree(out / "classifier", ignore_errors=True)
    (out / "class_vectors.safetensors").unlink()
    more = [f"--model.init_args.teacher={imported / 'teacher'}"] if kind == "student" else []
    assert import_as(kind, imported / f"{kind}.pth", out, *more) == 0
    after, whole = runs.files_of(out), runs.files_of(imported / kind)
    assert after.keys() - {"metrics.csv", ".lock"} == whole.keys() - {"metrics.csv", ".lock"}
    parts = {"prompts.safetensors", "class_vectors.safetensors", "classifier/model.safetensors"}
    for part in whole.keys() & parts:
        assert after[part][1] == whole[part][1]


def test_nothing_is_trained_or_rounded_and_names_without_a_place_are_left_out(tmp_path, capsys):
    more = {f"something.else{i}": torch.zeros(2) for i in range(6)}
    more["image_encoder.attnpool.weight"] = torch.zeros(2)
    file = files.write(tmp_path / "more.pth", {**files.teacher_state(), **more})
    # two images of a class are fewer than the 16 shots that a fit asks for
    root = runs.image_folder(tmp_path / "images", images=2)
    options = ["--data.init_args.dataset=folder", f"--data.init_args.root={root}"]
    options += ["--trainer.precision=bf16-true", "--trainer.fast_dev_run=true"]
    out = tmp_path / "teacher"
    assert import_as("teacher", file, out, *options) == 0
    assert "7 tensors (image_encoder.attnpool.weight, something.else0" in capsys.readouterr().err
    assert ClassVectors.load(out / "class_vectors.safetensors").class_names == ("cat", "dog")
    tokens = TunedPrompts.load(out / "prompts.safetensors").tensors["vision_prompts.tokens"]
    assert torch.equal(tokens, files.originals().vision.half().float())
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 0
    assert config["model"]["init_args"]["averaging"] is None


@pytest.mark.parametrize(
    ("kind", "file", "options", "words"),
    [
        ("student", "teacher", "", "expected a student"),
        ("teacher", "teacher", "vision_prompts.depth=2", "settings ask for a teacher as [2, 4"),
        ("teacher", "teacher", "vision_prompts.depth=0", "ask for a teacher without it"),
        # the student's text tower has one layer: no deep prompts in it
        ("teacher", "teacher", f"clip.model={files.STUDENT} text_prompts.depth=1", "another CLIP"),
        ("teacher", "teacher", "method=coupled", "model.init_args.method is 'coupled'"),
        ("student", "student", "teacher={other}", "[24, 20], the settings ask for"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    kind, file, options, words, imported, tmp_path, capsys
):
    write_teacher(tmp_path, files.STUDENT, class_names=CLASS_NAMES, num_base=None)
    more = [f"teacher={imported / 'teacher'}"] if kind == "student" else []
    more += options.format(other=tmp_path).split()
    more = [f"--model.init_args.{option}" for option in more]
    assert import_as(kind, imported / f"{file}.pth", tmp_path / "out", *more) == 1
    runs.error_line(capsys, words)
    assert runs.files_of(tmp_path / "out") == {}


def test_a_wrong_argument_is_one_line(capsys):
    of_teacher = "--model.init_args.teacher=t"
    for args, word in (
        (["pupil", "f"], "pupil"),
        (["teacher", "none.pth", "--out=x"], "none.pth does not exist"),
        (["teacher", __file__], "import needs the settings of a fit"),
        (["teacher", __file__, *runs.DATA, *runs.STUDENT, of_teacher], "those of a teacher"),
    ):
        runs.refused(capsys, main(["import", *args]), word)

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

TOLERANCES = {torch.float16: 1e-3, torch.float32: 1e-5}


@pytest.fixture
def teacher_file(tmp_path):
    return files.write(tmp_path / "teacher.pth", files.teacher_state())


@pytest.fixture
def student_file(tmp_path):
    return files.write(tmp_path / "student.pth", files.student_state())


def plain_vectors(plain_of):
    texts = [prompt_text("a photo of a", name) for name in CLASS_NAMES]
    return normalized(plain_of(files.TEACHER).text_features(texts, files.originals().text))


class TestNumbers:
    """Against the plain implementation on what was trained, before the file rounded it."""

    def test_class_vectors(self, imported, plain_of):
        folder, dtype = imported
        vectors = ClassVectors.load(folder / "teacher/class_vectors.safetensors")
        assert vectors.class_names == CLASS_NAMES
        assert relative_error(vectors.vectors, plain_vectors(plain_of)) < TOLERANCES[dtype]

    def test_teacher_logits(self, imported, plain_of, images):
        folder, dtype = imported
        clip = load_clip(ClipConfig(files.TEACHER, world.TAG))
        vectors = ClassVectors.load(folder / "teacher/class_vectors.safetensors")
        prompts = TunedPrompts.load(folder / "teacher/prompts.safetensors").restore(clip)
        features = prompts.encode_images(clip.image_tower, images)
        logits = cosine_logits(features, vectors.vectors, vectors.logit_scale)
        plain = plain_of(files.TEACHER)
        features = normalized(plain.image_features(images, files.originals().vision))
        expected = plain.scale * features @ plain_vectors(plain_of).T
        assert relative_error(logits, expected) < TOLERANCES[dtype]

    def test_student_logits(self, imported, plain_of, images):
        folder, dtype = imported
        logits = Classifier.load(folder / "student/classifier")(images)
        plain, drawn = plain_of(files.STUDENT), files.originals()
        projector = PlainProjector(drawn.projector)
        features = normalized(projector(plain.image_features(images, drawn.student), training=False))
        expected = plain.scale * features @ plain_vectors(plain_of).T
        assert relative_error(logits, expected) < TOLERANCES[dtype]

    def test_checkpoints_hold_what_was_handed_over(self, imported):
        folder, _ = imported
        state = torch.load(folder / "teacher/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        prompts = TunedPrompts.load(folder / "teacher/prompts.safetensors").tensors
        assert len(state) == len(prompts)
        assert all(torch.equal(state[f"prompts.{k}"], v) and v.dtype == torch.float32 for k, v in prompts.items())
        state = torch.load(folder / "student/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name, tensor in Classifier.load(folder / "student/classifier").encoder.state_dict().items():
            assert torch.equal(state[f"encoder.{name}"], tensor)


class TestRunFolders:
    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_they_hold_what_fit_leaves(self, imported):
        folder, _ = imported
        for name, handed_over in (
            ("teacher", ["class_vectors.safetensors", "prompts.safetensors"]),
            ("student", ["class_vectors.safetensors", "classifier/classifier.json", "classifier/model.safetensors"]),
        ):
            expected = {"config.yaml", "checkpoints/last.ckpt", "import.json", *handed_over}
            assert runs.files_of(folder / name).keys() - {"metrics.csv", ".lock"} == expected

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_the_record_tells_which_file_it_was(self, imported):
        record = json.loads((imported[0] / "teacher/import.json").read_text())
        assert record["file"] == "t.pth"
        assert len(record["sha256"]) == 64

    def test_a_finished_import_is_finished_for_import_and_for_fit(self, importer, teacher_file, tmp_path, capsys):
        out = tmp_path / "teacher"
        assert importer.teacher(teacher_file, out) == 0
        before = runs.files_of(out)
        for again in (
            lambda: importer.teacher(teacher_file, out),
            lambda: main(["fit", f"--config={out}/config.yaml"]),
        ):
            capsys.readouterr()
            assert again() == 0
            assert f"{out} is finished: nothing to do" in capsys.readouterr().err
        assert runs.files_of(out) == before

    def test_another_file_into_the_same_folder_is_refused(self, importer, teacher_file, tmp_path, capsys):
        out = tmp_path / "teacher"
        assert importer.teacher(teacher_file, out) == 0
        before = runs.files_of(out)
        state = files.teacher_state()
        state["prompt_learner.ctx"] += 1
        other = files.write(tmp_path / "other.pth", state)
        assert importer.teacher(other, out) == 1
        assert f"{out} holds something other than the import of {other}" in capsys.readouterr().err
        assert runs.files_of(out) == before

    def test_a_folder_of_a_trained_run_is_refused(self, importer, teacher_file, tmp_path, capsys):
        out = tmp_path / "teacher"
        assert main(["fit", *importer.teacher_settings, *runs.SHORT, *runs.AVERAGING, f"--out={out}"]) == 0
        before = runs.files_of(out)
        assert importer.teacher(teacher_file, out) == 1
        assert f"{out} holds a run with other settings" in capsys.readouterr().err
        assert runs.files_of(out) == before

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    @pytest.mark.parametrize("kind", ["teacher", "student"])
    def test_an_interrupted_import_is_resumed(self, kind, importer, imported, tmp_path):
        folder, _ = imported
        shutil.copytree(folder / kind, tmp_path / kind)
        shutil.rmtree(tmp_path / kind / "classifier", ignore_errors=True)
        (tmp_path / kind / "class_vectors.safetensors").unlink(missing_ok=True)
        # the settings of the session's import name its folder
        file, whole = folder / f"{kind[0]}.pth", runs.files_of(folder / kind)
        if kind == "teacher":
            assert importer.teacher(file, tmp_path / kind) == 0
        else:
            assert importer.student(file, tmp_path / kind, folder / "teacher") == 0
        parts = ("prompts.safetensors", "class_vectors.safetensors", "classifier/model.safetensors")
        after = runs.files_of(tmp_path / kind)
        assert after.keys() - {"metrics.csv", ".lock"} == whole.keys() - {"metrics.csv", ".lock"}
        assert all(after[part][1] == whole[part][1] for part in parts if part in whole)

    def test_what_fails_leaves_nothing_behind(self, importer, tmp_path):
        state = files.teacher_state()
        state["image_encoder.VPT"] = torch.zeros(5, 48).half()
        assert importer.teacher(files.write(tmp_path / "bad.pth", state), tmp_path / "teacher") == 1
        assert runs.files_of(tmp_path / "teacher") == {}


class TestUse:
    @pytest.mark.slow
    def test_run_resumes_from_an_imported_teacher(self, tmp_path):
        teacher, student, file = tmp_path / "run/teacher", tmp_path / "run/student", tmp_path / "tiny.pth"
        files.write(file, files.teacher_state(name="tiny-teacher"))
        depth = f"--model.init_args.vision_prompts.depth={files.VISION_DEPTH}"
        assert main(["import", "teacher", str(file), *runs.DATA, *runs.TEACHER, depth, f"--out={teacher}"]) == 0
        imported = runs.files_of(teacher)
        stages = [
            arg.replace("--config", f"--{kind}")
            for kind in ("teacher", "student")
            for arg in getattr(runs, kind.upper())
        ]
        run = ["run", *runs.DATA, *stages, *runs.SHORT, "--trainer.max_epochs=1", f"--out={tmp_path / 'run'}"]
        assert main(run) == 0
        # it is as it was, and tested; the student comes from it
        own = ("prompts.safetensors", "class_vectors.safetensors", "import.json")
        assert all(runs.files_of(teacher)[name] == imported[name] for name in own)
        for stage in (teacher, student):
            assert json.loads((stage / "test.json").read_text())["images"] == 899
        vectors = ClassVectors.load(teacher / "class_vectors.safetensors")
        assert Classifier.load(student / "classifier").vectors.teacher == vectors.teacher

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_an_imported_student_is_tested_as_it_is(self, imported, tmp_path):
        folder, _ = imported
        files_of_student = [
            f"--config={folder}/student/config.yaml",
            f"--ckpt_path={folder}/student/checkpoints/last.ckpt",
        ]
        assert main(["test", *files_of_student, f"--out={tmp_path}"]) == 0
        classifier = Classifier.load(folder / "student/classifier")
        data = DomainDataModule("digits", num_workers=0)
        right = sum(
            int((classifier(images).argmax(1) == labels).sum()) for images, labels, _ in data.test_dataloader_for(32)
        )
        assert json.loads((tmp_path / "test.json").read_text())["test/acc"] == pytest.approx(right / 899, abs=1e-3)

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_predict_uses_an_imported_student(self, imported, tmp_path, capsys):
        root = runs.image_folder(tmp_path / "images", images=1)
        assert main(["predict", str(imported[0] / "student/classifier"), str(root / "test/cat/0.png")]) == 0
        out = capsys.readouterr().out
        assert any(name in out for name in CLASS_NAMES)

    def test_the_teacher_needs_no_training_images(self, importer, teacher_file, tmp_path):
        # two images of a class are fewer than the 16 shots that a fit asks for
        root = runs.image_folder(tmp_path / "images", images=2)
        data = ["--data.init_args.dataset=folder", f"--data.init_args.root={root}"]
        assert importer.teacher(teacher_file, tmp_path / "t", *data) == 0
        assert ClassVectors.load(tmp_path / "t/class_vectors.safetensors").class_names == ("cat", "dog")
        assert main(["fit", *importer.teacher_settings, *data, *runs.SHORT, f"--out={tmp_path / 'u'}"]) == 1

    def test_settings_that_would_train_are_left_aside(self, importer, teacher_file, tmp_path):
        training = ["--trainer.max_epochs=3", "--trainer.fast_dev_run=true", "--trainer.limit_train_batches=2"]
        assert importer.teacher(teacher_file, tmp_path / "t", *training) == 0
        state = torch.load(tmp_path / "t/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        expected = files.originals()
        assert torch.equal(state["prompts.vision_prompts.tokens"], expected.vision.half().float())
        config = yaml.safe_load((tmp_path / "t/config.yaml").read_text())
        assert config["trainer"]["max_epochs"] == 0
        assert config["model"]["init_args"]["averaging"] is None

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
    def test_what_is_taken_over_is_not_rounded_further(self, precision, importer, teacher_file, tmp_path):
        assert importer.teacher(teacher_file, tmp_path / "t", f"--trainer.precision={precision}") == 0
        tokens = TunedPrompts.load(tmp_path / "t/prompts.safetensors").tensors["vision_prompts.tokens"]
        assert torch.equal(tokens, files.originals().vision.half().float())


class TestRefusals:
    def refused(self, code, capsys, *parts):
        assert code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert not [line for line in lines if "Traceback" in line]
        assert all(part in lines[-1] for part in parts), lines[-1]

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_a_teacher_as_student_and_a_student_as_teacher(self, importer, imported, tmp_path, capsys):
        folder, _ = imported
        code = importer.student(folder / "t.pth", tmp_path / "s", folder / "teacher")
        self.refused(code, capsys, "t.pth holds a teacher, expected a student: use the command import teacher")
        code = importer.teacher(folder / "s.pth", tmp_path / "t")
        self.refused(code, capsys, "s.pth holds a student, expected a teacher: use the command import student")

    def test_settings_of_the_other_kind(self, importer, teacher_file, tmp_path, capsys):
        settings = [*importer.student_settings, "--model.init_args.teacher=t", f"--out={tmp_path / 's'}"]
        code = main(["import", "teacher", str(teacher_file), *settings])
        self.refused(code, capsys, "StudentDistillation, expected those of a teacher", "configs/teacher/")

    @pytest.mark.parametrize(
        ("option", "value", "parts"),
        [
            ("vision_prompts.depth", 2, ["visual prompts of 4 tokens in 3 layers", "vision_prompts.depth to 3"]),
            ("vision_prompts.length", 2, ["ask for 2 tokens in 3 layers", "vision_prompts.length to 4"]),
            ("vision_prompts.depth", 0, ["ask for none", "length to 4 and model.init_args.vision_prompts.depth to 3"]),
            ("text_prompts.depth", 1, ["text prompts of 4 tokens in 2 layers", "text_prompts.depth to 2"]),
            ("text_prompts.depth", 0, ["ask for none", "text_prompts.depth to 2"]),
            ("clip.model", files.STUDENT, ["made on another CLIP", "set model.init_args.clip to the CLIP of"]),
        ],
    )
    def test_sizes_that_the_settings_do_not_have(self, option, value, parts, importer, teacher_file, tmp_path, capsys):
        # the student's text tower has one layer: no deep prompts in it
        more = ["--model.init_args.text_prompts.depth=1"] if option == "clip.model" else []
        code = importer.teacher(teacher_file, tmp_path / "t", f"--model.init_args.{option}={value}", *more)
        self.refused(code, capsys, *parts)

    def test_a_student_of_another_teacher(self, importer, student_file, tmp_path, capsys):
        world.write_teacher(tmp_path, "test-student-quickgelu", class_names=CLASS_NAMES, num_base=None)
        code = importer.student(student_file, tmp_path / "s", tmp_path)
        self.refused(code, capsys, "projects from 20 to 24 dimensions", "model.init_args.teacher")

    @pytest.mark.parametrize("imported", ["half"], indirect=True)
    def test_a_student_without_projector(self, importer, imported, student_file, tmp_path, capsys):
        more = "--model.init_args.text_features=student"
        code = importer.student(student_file, tmp_path / "s", imported[0] / "teacher", more)
        self.refused(code, capsys, "has a projector, the settings ask for a student without one")

    def test_coupled_prompts(self, importer, teacher_file, tmp_path, capsys):
        code = importer.teacher(teacher_file, tmp_path / "t", "--model.init_args.method=coupled")
        self.refused(code, capsys, "model.init_args.method is 'coupled': set it to independent")

    def test_a_student_without_its_teacher(self, importer, student_file, tmp_path, capsys):
        code = main(["import", "student", str(student_file), *importer.student_settings, f"--out={tmp_path / 's'}"])
        self.refused(code, capsys, "required: teacher")

    @pytest.mark.parametrize(
        ("args", "part"),
        [
            ([], "kind"),
            (["teacher"], "file"),
            (["pupil", "f"], "pupil"),
            (["teacher", "none.pth", "--out=x"], "none.pth does not exist: check the path"),
            (["teacher", __file__], "import needs the settings of a fit"),
            (["teacher", __file__, "--config=none.yaml"], "config none.yaml does not exist"),
        ],
    )
    def test_arguments(self, args, part, capsys):
        self.refused(main(["import", *args]), capsys, part)

    def test_a_damaged_file(self, importer, teacher_file, tmp_path, capsys):
        teacher_file.write_bytes(teacher_file.read_bytes()[:-100])
        self.refused(importer.teacher(teacher_file, tmp_path / "t"), capsys, "is damaged", "fetch it again")


def test_names_without_a_place_are_listed_and_left_out(importer, tmp_path, capsys):
    state = files.teacher_state()
    state |= {f"something.else{i}": torch.zeros(2) for i in range(6)}
    state["image_encoder.attnpool.weight"] = torch.zeros(2)
    file = files.write(tmp_path / "more.pth", state)
    assert importer.teacher(file, tmp_path / "teacher") == 0
    assert "no place here: 7 tensors (image_encoder.attnpool.weight, something.else0, " in capsys.readouterr().err
    assert (tmp_path / "teacher/class_vectors.safetensors").exists()

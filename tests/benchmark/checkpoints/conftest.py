import published_files as files
import pytest
import runs
import torch
import yaml

from kdpl.__main__ import main

DTYPES = {"half": torch.float16, "float32": torch.float32}


class Importer:
    """Imports published files of the random CLIPs on the digits; ``settings`` by kind are those that the files fit."""

    def __init__(self, folder):
        def prompts(depth):
            return {"length": files.LENGTH, "depth": depth}

        teacher = {
            "clip": {"pretrained": "noise", "model": files.TEACHER},
            "vision_prompts": prompts(files.VISION_DEPTH),
            "text_prompts": prompts(files.TEXT_DEPTH),
            # as a config of configs/teacher has them; importing leaves them aside
            "averaging": {"mean": 15, "std": 1},
        }
        student = {
            "clip": {"pretrained": "noise", "model": files.STUDENT},
            "vision_prompts": prompts(files.STUDENT_DEPTH),
            "prompt_init": "mean_token",
        }
        self.settings = {}
        for name, init_args in {"TeacherPromptTuning": teacher, "StudentDistillation": student}.items():
            path = folder / f"{name}.yaml"
            model = {"class_path": f"kdpl.{name}", "init_args": init_args}
            path.write_text(yaml.safe_dump({"model": model, "trainer": {"max_epochs": 20}}))
            kind = "teacher" if init_args is teacher else "student"
            self.settings[kind] = [*runs.DATA, f"--config={path}", "--trainer.enable_progress_bar=false"]

    def __call__(self, kind, file, out, *more):
        return main(["import", kind, str(file), *self.settings[kind], f"--out={out}", *more])


@pytest.fixture
def importer(tmp_path):
    return Importer(tmp_path)


@pytest.fixture(scope="session", params=DTYPES)
def imported(request, tmp_path_factory):
    """Folder of an imported teacher and student and their files; no test changes it."""
    folder = tmp_path_factory.mktemp(request.param)
    dtype, importer = DTYPES[request.param], Importer(folder)
    teacher = files.write(folder / "teacher.pth", files.teacher_state(dtype))
    student = files.write(folder / "student.pth", files.student_state(dtype))
    assert importer("teacher", teacher, folder / "teacher") == 0
    assert importer("student", student, folder / "student", f"--model.init_args.teacher={folder / 'teacher'}") == 0
    return folder

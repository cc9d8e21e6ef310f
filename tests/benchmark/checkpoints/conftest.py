import published_files as files
import pytest
import runs
import torch
import yaml

from kdpl.__main__ import main

DTYPES = {"half": torch.float16, "float32": torch.float32}


class Importer:
    """Imports published files of the random CLIPs on the digits; all under one folder.

    Attributes:
        folder: The folder.
        teacher_settings, student_settings: Settings that the files fit, without ``--out``.
    """

    def __init__(self, folder):
        self.folder = folder
        clip = {"pretrained": "noise"}
        self.teacher_settings = self._config(
            "teacher",
            clip={**clip, "model": files.TEACHER},
            vision_prompts={"length": files.LENGTH, "depth": files.VISION_DEPTH},
            text_prompts={"length": files.LENGTH, "depth": files.TEXT_DEPTH},
            # as a config of configs/teacher has them; importing leaves them aside
            averaging={"mean": 15, "std": 1},
        )
        self.student_settings = self._config(
            "student",
            clip={**clip, "model": files.STUDENT},
            vision_prompts={"length": files.LENGTH, "depth": files.STUDENT_DEPTH},
            prompt_init="mean_token",
        )

    def _config(self, kind, **settings):
        class_path = {"teacher": "kdpl.TeacherPromptTuning", "student": "kdpl.StudentDistillation"}[kind]
        path = self.folder / f"{kind}.yaml"
        model = {"class_path": class_path, "init_args": settings}
        path.write_text(yaml.safe_dump({"model": model, "trainer": {"max_epochs": 20}}))
        return [*runs.DATA, f"--config={path}", "--trainer.enable_progress_bar=false"]

    def teacher(self, file, out, *more):
        return main(["import", "teacher", str(file), *self.teacher_settings, f"--out={out}", *more])

    def student(self, file, out, teacher, *more):
        settings = [*self.student_settings, f"--model.init_args.teacher={teacher}", f"--out={out}"]
        return main(["import", "student", str(file), *settings, *more])


@pytest.fixture
def importer(tmp_path):
    return Importer(tmp_path)


@pytest.fixture(scope="session", params=DTYPES)
def imported(request, tmp_path_factory):
    """Folder of an imported teacher and student, and the type of numbers of their files; no test changes it."""
    folder = tmp_path_factory.mktemp(request.param)
    dtype = DTYPES[request.param]
    importer = Importer(folder)
    assert importer.teacher(files.write(folder / "t.pth", files.teacher_state(dtype)), folder / "teacher") == 0
    student = files.write(folder / "s.pth", files.student_state(dtype))
    assert importer.student(student, folder / "student", folder / "teacher") == 0
    return folder, dtype

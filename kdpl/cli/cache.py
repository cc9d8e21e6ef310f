"""``python -m kdpl cache``: compute the teacher's features of all views once for all students."""

from pathlib import Path

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import require_settings
from kdpl.errors import ConfigError


def cache(*, views: PositiveInt | None = None, settings: list[str]) -> int:
    """Compute the teacher's features of views of unlabelled images, for a student's fit to read.

    Takes the options of the student's fit: --config FILE, --model.init_args.teacher RUN, and
    --model.init_args.teacher_cache FOLDER for the folder to write. If interrupted, the same
    command resumes.

    Args:
        views: Views of each image; by default as many as trainer.max_epochs.
        settings: Options of the student's fit.
    """
    require_settings("cache", "a student's fit", settings)
    from kdpl.cli.fit import parse_stage, run_stage

    student = parse_stage("fit", settings)
    # imports torch, so only after the checks of files
    from kdpl.student import FillTeacherCache, StudentDistillation

    student.require_stage(StudentDistillation, "student")
    folder = student.config.model.init_args.get("teacher_cache")
    if not folder:
        raise ConfigError(
            "the settings name no cache to fill: give --model.init_args.teacher_cache FOLDER"
        )
    epochs = views or student.config.trainer.max_epochs or 0
    # the datamodule records in the cache which images it has decoded
    out, fill = str(Path(folder).expanduser()), FillTeacherCache(epochs)
    run_stage(student, lambda stage: stage.without_steps(fill, {"max_epochs": epochs}, out=out))
    return 0

"""``python -m kdpl import``: turn the authors' published checkpoints into run folders."""

from pathlib import Path
from typing import Any, Literal

from kdpl.cli.arguments import require_settings
from kdpl.errors import ArtifactError, ConfigError


def import_(kind: Literal["teacher", "student"], file: str, *, settings: list[str]) -> int:
    """Turn a checkpoint published by PromptKD's authors into a run's folder, as fit leaves it.

    Takes the options of the fit: --config FILE, --out FOLDER, and for a student
    --model.init_args.teacher RUN. Nothing is trained, even if they set a number of epochs.

    Args:
        kind: Contents of the file: teacher or student.
        file: The checkpoint.
        settings: Options of the fit.
    """
    path = Path(file)
    if not path.is_file():
        raise ArtifactError(f"checkpoint {file} does not exist: check the path")
    require_settings("import", "a fit", settings)
    from kdpl.benchmark.checkpoints import TakeOver, read_published, record_for
    from kdpl.cli.fit import parse_stage, run_stage
    from kdpl.student import StudentDistillation
    from kdpl.teacher import TeacherPromptTuning

    stage = parse_stage("fit", settings)
    stage.require_stage(TeacherPromptTuning if kind == "teacher" else StudentDistillation, kind)
    method = stage.config.model.init_args.get("method", "independent")
    if method != "independent":
        raise ConfigError(
            "the published teachers have independent prompts, model.init_args.method is "
            f"{method!r}: set it to independent"
        )

    # train nothing, nor change the weights before or after the epochs
    trainer: dict[str, Any] = dict.fromkeys(
        ("max_epochs", "limit_train_batches", "num_sanity_val_steps"), 0
    )
    model = {"averaging": None} if kind == "teacher" else {"vision_prompts": {"init": "normal"}}
    values = {"trainer": {**trainer, "fast_dev_run": False}, "model": {"init_args": model}}
    stage = stage.derive(values)
    record = record_for(stage.folder, path)
    stage.further_callbacks = [TakeOver(read_published(path, kind), record)]
    run_stage(stage)
    return 0

"""``python -m kdpl estimate PATH``: what a run will be worth, before anything is trained."""

from pathlib import Path

_PAGE = "estimate.html"


def estimate(
    path: str,
    *,
    teacher: list[str] = [],  # noqa: B006 - the parser copies it
    student: list[str] = [],  # noqa: B006 - the parser copies it
    class_names: str | None = None,
    out: str | None = None,
    seed: int = 1,
) -> int:
    """Estimate what run PATH will be worth, from frozen features, before anything is trained.

    Writes estimate.html: expected test accuracies with intervals, what fewer and more labels give,
    weak classes, and what to do next.

    Args:
        path: folder or table of the images, as for run; test images are not looked at
        teacher: config of the teacher, as for run, whose original CLIP is measured; may be repeated
        student: config of the student, as for run; may be repeated
        class_names: file with the names of all classes, as for run
        out: folder to write into, by default runs/NAME_estimate with the name of PATH
        seed: seed of views and samples
    """
    from kdpl.cli.run import require_folder_of
    from kdpl.runtime.advice import absolute, command
    from kdpl.runtime.run_folder import DATA_FOLDER

    name = absolute(path).stem
    folder = Path(out or Path("runs") / f"{name}_estimate")
    require_folder_of("an estimate", folder, _PAGE, (DATA_FOLDER,))

    from kdpl.cli.choice import Options
    from kdpl.cli.prepare import prepare
    from kdpl.report.estimate.findings import describe
    from kdpl.report.estimate.folds import measure
    from kdpl.report.estimate.inputs import gather
    from kdpl.report.page import fill
    from kdpl.runtime.files import write_text
    from kdpl.runtime.messages import inform

    given = Options(teacher=teacher, student=student, seed=seed)
    choice = prepare(path, folder, given, (class_names, None))
    # marks the folder
    write_text(folder / _PAGE, "This estimate was not finished: start it again.")
    frozen, names = gather(choice, folder, given)
    inform("predicting each labelled image without its label")
    values = describe(frozen, measure(frozen), names)
    words = given.words()
    words += ["--class-names", Path(class_names)] if class_names else []
    values |= {"name": name, "command": command("run", Path(path), *words)}
    write_text(folder / _PAGE, fill("estimate.html.jinja", **values))
    print(fill("estimate.txt.jinja", **values) + f"page: {folder / _PAGE}")
    return 0

"""``python -m kdpl report``: the report of a run, or of a classifier's new images."""

from pathlib import Path

from kdpl.cli.arguments import output_file, share, warn_of_rejected_classes
from kdpl.errors import ConfigError
from kdpl.runtime.files import write_text
from kdpl.runtime.run_folder import REPORT_FILE, require_classifier

DIFFERS = 3
"""Exit code where new images differ from the pool."""

_PAGE = "watch.html"
_FALSE_ALARMS = 0.01


def report(
    run: str,
    *,
    on: list[str] = [],  # noqa: B006
    against: list[str] = [],  # noqa: B006
    max_error: str | None = None,
    per_class: bool = False,
    false_alarms: str | None = None,
    out: str | None = None,
    trust: bool = False,
) -> int:
    """Write report.html: what was trained and how well, in one file that needs no other.

    With --on, compare new images with those that a classifier was trained on, without labels, and write watch.html. The
    exit code is then 0 if they are alike, and 3 if they differ.

    Args:
        run: the --out of run, or of a stage's fit; with --on, the classifier folder of a student's run
        on: new images, as predict takes them: image files, .tar shards, folders, patterns, .txt lists
        against: images to compare them with, instead of the sample of the pool in the classifier's folder
        max_error: with --on, reject images as predict does with it, not those less sure than 19 in 20 of the pool
        per_class: with --max-error, reject images by a threshold for each predicted class, as predict does
        false_alarms: with --on, the share of batches like the pool that may be said to differ; 0.01 if not given
        out: file to write, instead of report.html in RUN, or watch.html in the working directory
        trust: the run is your own: import whatever classes its configs name
    """
    path = output_file("--out", out) if out is not None else None
    if on:
        return _watch(run, on, against, max_error, per_class, false_alarms, path or Path(_PAGE))
    if against or max_error is not None or per_class or false_alarms is not None:
        options = "--against, --max-error, --per-class and --false-alarms"
        raise ConfigError(f"{options} compare new images: name them by --on")
    folder = Path(run)
    path = path or folder / REPORT_FILE

    from kdpl.report.page import render
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import inform, quiet_libraries

    quiet_libraries()
    found = Run.find(folder, trust)
    inform("making the report: loading and timing both encoders")
    html = render(found)
    write_text(path, html)
    print(f"report: {path}")
    return 0


def _watch(
    folder: str,
    on: list[str],
    against: list[str],
    max_error: str | None,
    per_class: bool,
    false_alarms: str | None,
    path: Path,
) -> int:
    from kdpl.data.sources import find_files

    require_classifier(Path(folder))
    error, rate = share("--max-error", max_error), share("--false-alarms", false_alarms) or _FALSE_ALARMS
    sources, references = list(find_files(on)), list(find_files(against))

    import json

    from kdpl.classifier.bulk import load_classifier
    from kdpl.doubt.decision import decision_rule
    from kdpl.runtime.messages import inform
    from kdpl.watch.batches import MIN_IMAGES, look, render, watch
    from kdpl.watch.image_sample import MAX_IMAGES, REMEDY, ImageSample
    from kdpl.watch.two_samples import LEAST_RATE, QUANTILE

    if rate < LEAST_RATE:
        raise ConfigError(f"--false-alarms is {false_alarms}, expected {LEAST_RATE:.2%} or more: give for example 1%")
    classifier = load_classifier(folder, None, "auto")
    rule = decision_rule(classifier.held_out, error, per_class=per_class)
    warn_of_rejected_classes(rule, classifier.class_names)
    if against:
        pool = look(classifier, references, "--against").sample.draw(MAX_IMAGES)
    else:
        pool = ImageSample.load(Path(folder), classifier.fingerprint(), classifier.vectors.vectors.shape)
    if len(pool) < MIN_IMAGES:
        raise ConfigError(f"it takes {MIN_IMAGES} images of the pool or more, and {folder} keeps {len(pool)}: {REMEDY}")
    new = look(classifier, sources, "--on")
    found = watch(classifier, pool, new, rule if error is not None else None, rate, trained_on=not against)
    of_pool = f"the one that {100 * QUANTILE:.0f} % of the pool are below"
    about = {
        "name": str(Path(folder).resolve()),
        "batch": " ".join(on),
        "reference": " ".join(against) if against else None,
        "rule": f"that of --max-error {max_error}{' --per-class' * per_class}" if error is not None else of_pool,
    }
    write_text(path, render(found, classifier, sources, **about))
    summary = found["summary"]
    why = f"differ from the pool: {'; '.join(summary['because'])}" if summary["differs"] else "are like the pool"
    inform(f"{summary['images']} new images {why}")
    if found["missing"]:
        inform(f"images of none of the classes are not compared: {found['missing']}")
    print(json.dumps({**summary, "report": str(path)}, ensure_ascii=False))
    return DIFFERS if summary["differs"] else 0

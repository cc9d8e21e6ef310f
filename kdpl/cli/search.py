"""``python -m kdpl search``: what of a student is trained, chosen by its fidelity."""

from jsonargparse.typing import PositiveFloat, PositiveInt

_RATES = (1e-4, 3e-4, 1e-3)
_TOWER = {"fine_tune": "true", "vision_prompts.depth": "0", "optim.optimizer": "adamw"}
_LOGGER = '--trainer.logger={"class_path": "kdpl.runtime.loggers.MetricsCSV"}'


def search(
    *,
    out: str,
    epochs: PositiveInt | None = None,
    lr: list[PositiveFloat] = [],  # noqa: B006 - the parser copies it
    settings: list[str],
) -> int:
    """Choose what of a student is trained, by short fits that are compared without labels.

    The candidates are the student as configured, and its whole image tower at several learning
    rates. The one that agrees with its target on most unlabelled images that none of them has seen
    is written to best.yaml, a config to give after the student's. All other options are those of
    the student's fit: --config FILE, --model.init_args.teacher RUN. An interrupted search is
    resumed by the same command.

    Args:
        out: Folder of best.yaml and of the candidates' runs.
        epochs: Epochs of each candidate; by default a quarter of the fit's, and at least 2.
        lr: Learning rates of the tower; by default 1e-4, 3e-4 and 1e-3.
        settings: Options of the student's fit.
    """
    import gc
    from pathlib import Path
    from pkgutil import resolve_name

    import yaml
    from lightning.pytorch import Callback

    from kdpl.cli.fit import run_command
    from kdpl.cli.stage_cli import KdplCLI
    from kdpl.errors import ConfigError, TrainingError
    from kdpl.metrics import FIDELITY, TARGET_KL, UNSEEN
    from kdpl.runtime.configs import read_config
    from kdpl.runtime.files import copy, write_text
    from kdpl.runtime.loggers import read_metrics
    from kdpl.runtime.markdown import markdown_rows
    from kdpl.runtime.messages import inform, process_rank
    from kdpl.runtime.run_folder import CONFIG_FILE, DECODED_FILE, METRICS_FILE
    from kdpl.student import StudentDistillation
    from kdpl.targets.fidelity import Fidelity

    if not settings:
        raise ConfigError(
            "search needs the settings of a student's fit: give --config FILE (--help tells more)"
        )
    candidates = {"configured": dict[str, str]()}
    candidates |= {f"tower_{rate:g}": {**_TOWER, "optim.lr": str(rate)} for rate in lr or _RATES}

    class Candidate(KdplCLI):
        """A student's fit of fewer epochs, which is measured after the last one."""

        def before_instantiate_classes(self) -> None:
            self.require_stage(StudentDistillation, "student")
            trainer = self.config.trainer
            if (all_epochs := trainer.max_epochs or 0) < 1:
                raise ConfigError("the number of epochs is unknown: set trainer.max_epochs")
            # four quarters cost one fit, and the first epoch is a warm-up
            own = int(epochs or max(2, -(-all_epochs // 4)))
            trainer.max_epochs = trainer.check_val_every_n_epoch = own
            cost = f"{len(candidates) * own / all_epochs:.2g} times the fit of {all_epochs}"
            inform(f"{name}: {own} epochs each; the {len(candidates)} candidates cost {cost}")
            super().before_instantiate_classes()

        def own_callbacks(self) -> list[Callback]:
            given = [each.class_path for each in self.config.trainer.callbacks or ()]
            own = [] if any(resolve_name(each) is Fidelity for each in given) else [Fidelity()]
            return [*super().own_callbacks(), *own]

    measured = dict[str, tuple[float, float, float]]()
    # the images of all candidates are the same, and need not be decoded once more
    first, decoded = process_rank() == 0, Path(out, DECODED_FILE)
    for name, options in candidates.items():
        folder = Path(out, name)
        own = [f"--model.init_args.{key}={value}" for key, value in options.items()]
        if first and decoded.is_file() and not (folder / DECODED_FILE).exists():
            copy(decoded, folder / DECODED_FILE)
        try:
            run_command(["fit", *settings, _LOGGER, *own, f"--out={folder}"], make=Candidate)
        except TrainingError as error:
            if not options:
                raise
            inform(f"{name} is left out: {error}")
            continue
        if first and (folder / DECODED_FILE).is_file() and not decoded.exists():
            copy(folder / DECODED_FILE, decoded)
        # a trainer and its model refer to each other
        gc.collect()
        curves = read_metrics(folder / METRICS_FILE)
        share, kl, images = (curves[each][-1][1] for each in (FIDELITY, TARGET_KL, UNSEEN))
        measured[name] = share, -kl, images

    if first:
        # of equals the one that is closer
        best = max(measured, key=lambda name: measured[name])
        chosen = read_config(str(Path(out, best, CONFIG_FILE)))["model"]["init_args"]
        kept = {name: chosen[name] for name in ("fine_tune", "vision_prompts", "optim")}
        file = Path(out, "best.yaml")
        write_text(file, yaml.safe_dump({"model": {"init_args": kept}}, sort_keys=False))
        head = ["", f"agrees on % of {measured[best][2]:.0f}", "KL, nats"]
        rows = [[name, f"{100 * at[0]:.1f}", f"{-at[1]:.3f}"] for name, at in measured.items()]
        print(*markdown_rows([head, *rows], 2), f"{best} is written to {file}", sep="\n")
    return 0

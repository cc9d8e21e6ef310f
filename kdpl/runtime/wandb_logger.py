"""A run in Weights & Biases that ends no training: bounded waits, offline where the server does not answer."""

import os
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from kdpl.errors import ConfigError, reason
from kdpl.runtime.files import atomic_path
from kdpl.runtime.wandb_steps import LoggedSteps

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

ID_FILE = "wandb_id"

_DEFAULT_PROJECT = "kdpl"
_ANSWER_SECONDS = 10
_INIT_SECONDS = 20
_FINISH_SECONDS = 300
# W&B's own process dies with this one, and what it has not written is lost
_FLUSH_SECONDS = 1


class RunWandbLogger(WandbLogger):
    """Lightning's WandbLogger, for a run that matters more than its log.

    Where W&B cannot be reached, or nobody is logged in, the run goes on offline, and says so in one sentence. A fit
    that goes on from a checkpoint does not log again what it logged before it was cut.
    """

    _steps: LoggedSteps | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The run of the ``wandb`` package."""
        import wandb

        if self._experiment is None and wandb.run is None:
            self._go_offline_if_need_be()
        try:
            run: Run = super().experiment
        except Exception as error:  # wandb's errors have no base in common
            raise ConfigError(
                f"W&B refuses to begin a run ({reason(error)}): correct the logger's settings, or leave the logger out"
            ) from error
        return run

    def _go_offline_if_need_be(self) -> None:
        """Begin the run if it is to be online and can be; or see to it that it begins offline."""
        import wandb

        # Lightning passes it on, and wandb warns of it
        if self._wandb_init.get("anonymous") is None:
            self._wandb_init.pop("anonymous", None)
        settings = dict(self._wandb_init.get("settings") or {})
        own = {
            "init_timeout": _INIT_SECONDS,
            "finish_timeout": _FINISH_SECONDS,
            "x_transaction_log_flush_interval": _FLUSH_SECONDS,
        }
        for name, seconds in own.items():
            # what the user set stays; wandb before its finish_timeout waits without bound
            if f"WANDB_{name.upper()}" not in os.environ and name in wandb.Settings.model_fields:
                settings.setdefault(name, seconds)
        self._wandb_init["settings"] = settings
        why = None
        if not self._offline and _is_online(self._wandb_init):
            why = _no_answer()
            if why is None:
                try:
                    super().experiment  # noqa: B018 - begins the run
                except Exception as error:  # as above
                    why = reason(error)
                    # or the half-begun run would keep its id to itself
                    wandb.teardown()
        if why is not None:
            rank_zero_warn(
                f"W&B cannot be used now ({why}): the run goes on offline, send it later with wandb sync "
                f"{Path(str(self._save_dir)) / 'wandb'}/offline-run-*"
            )
            self._wandb_init["mode"] = "offline"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row, but for what of it was logged before the run was cut."""
        if self._steps is None or step is None:
            super().log_metrics(metrics, step)
            return
        fresh, step = self._steps.new(metrics, step)
        if fresh:
            super().log_metrics(fresh, step)
            self._steps.keep(fresh, step)

    def go_on(self, folder: Path, fitting: bool) -> None:
        """Say whose steps these are.

        Args:
            folder: The run's folder.
            fitting: Whether a fit is beginning or going on.
        """
        self._steps = LoggedSteps(folder, fitting)


def _is_online(init: Mapping[str, Any]) -> bool:
    import wandb

    mode = init.get("mode") or wandb.setup().settings.mode
    return mode not in ("offline", "dryrun", "disabled")


def _no_answer() -> str | None:
    """Ask the server for anything at all; gives what is wrong if nothing comes.

    W&B's own start would wait several times as long, and once more at the end of the process.
    """
    import wandb

    settings = wandb.setup().settings
    url = settings.base_url
    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    # those of the environment as well, unless W&B has its own
    proxies = {**urllib.request.getproxies(), **{scheme: proxy for scheme, proxy in given.items() if proxy}}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        opener.open(url, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        # a certificate is W&B's own affair
        return None if isinstance(error.reason, ssl.SSLError) else f"{url} cannot be reached: {error.reason}"
    except TimeoutError:
        return f"{url} does not answer within {_ANSWER_SECONDS} s"
    except (OSError, HTTPException):
        # it answers, if strangely
        return None
    return None


def point_loggers(loggers: Any, folder: Path, keep: bool) -> None:  # noqa: ANN401
    """Put the relative folders of loggers into the run's folder, and keep one W&B id and name per run.

    Args:
        loggers: The trainer's logger settings: one, several or none.
        folder: The run's folder.
        keep: Whether to write a new id down, as a fit does.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        settings = logger.init_args
        if settings.get("save_dir") is not None:
            # an absolute save_dir stays as it is
            settings.save_dir = str(folder / settings.save_dir)
        if logger.class_path.endswith("WandbLogger"):
            # into a folder that is not there W&B does not write, but elsewhere
            Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
            settings.id = settings.id or _run_id(folder, keep)
            settings.project = settings.project or os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT)
            settings.name = settings.name or os.environ.get("WANDB_NAME", "/".join(folder.parts[-2:]))


def _run_id(folder: Path, keep: bool) -> str:
    """The id that all of a run's fits, resumes and tests share in W&B; of a new run that of WANDB_RUN_ID, if given."""
    file = folder / ID_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if keep and getattr(rank_zero_only, "rank", 0) == 0:
        with atomic_path(file) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new


def go_on(loggers: Iterable[Logger], folder: Path, fitting: bool) -> None:
    """Tell W&B loggers whose steps these are: call before a fit, a validation or a test.

    Args:
        loggers: The trainer's loggers.
        folder: The run's folder.
        fitting: Whether it is a fit.
    """
    for logger in loggers:
        if isinstance(logger, RunWandbLogger):
            logger.go_on(folder, fitting)


def finish(loggers: Iterable[Logger]) -> None:
    """End the runs in W&B, or the next command in this process would write into them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()

"""Who started this process, and that the processes of a training are as many as the settings say; imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kdpl.errors import ConfigError

_FIRST = "KDPL_FIRST_PROCESS"
# Lightning's own opt-out: in an interactive job of this name it starts its processes by itself
_INTERACTIVE = ("bash", "interactive")


@dataclass(frozen=True)
class Launch:
    """How many processes something else than Lightning started.

    Attributes:
        by: ``torchrun`` or ``Slurm``.
        processes: On all nodes.
        nodes: Nodes.
        remedy: What to change where it is started.
    """

    by: str
    processes: int
    nodes: int
    remedy: str


def launch() -> Launch | None:
    """Find out who started this process; None where Lightning itself starts the others, if there are any.

    torchrun comes first: it may be used within Slurm.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        processes, here = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", processes, max(processes // here, 1), "torchrun's --nproc_per_node")
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        processes, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", 1))
        return Launch("Slurm", processes, nodes, "sbatch's --ntasks-per-node")
    return None


def of_several() -> bool:
    """Whether this process is one of several that something else started."""
    found = launch()
    return found is not None and found.processes > 1 and not needs_srun()


def rank() -> int:
    """This process's number among all of its training, as far as it is known before the training begins."""
    # in this order Lightning looks for it
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


@contextmanager
def as_first() -> Iterator[None]:
    """Tell the processes that this one starts for its training who started them."""
    os.environ[_FIRST] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_FIRST]


def first_process() -> int | None:
    """The process that started this one, if it is the first of their training; None if srun or torchrun did.

    That one may be gone by now.
    """
    return int(os.environ[_FIRST]) if _FIRST in os.environ else None


def name_of_start() -> str:
    """What the processes of one start, and of no other, have in common."""
    job = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    # srun may start a torchrun on each node by a step of its own
    of_torchrun = (*job, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    names = of_torchrun if "TORCHELASTIC_RUN_ID" in os.environ else (*job, "SLURM_STEP_ID")
    return ".".join(os.environ.get(name, "") for name in names)


def needs_srun() -> bool:
    """Whether this process is that of a Slurm job's script alone, while the job has several tasks."""
    found = launch()
    return found is not None and found.by == "Slurm" and found.processes > 1 and "SLURM_STEP_ID" not in os.environ


def require_srun() -> None:
    """Refuse a start that would wait for ever for processes that nobody starts.

    Raises:
        ConfigError: The job of Slurm has several tasks and srun did not start this process, or does not say enough.
    """
    found = launch()
    if found is None or found.by != "Slurm":
        return
    if needs_srun():
        raise ConfigError(
            f"the Slurm job has {found.processes} tasks and this is none of them: put srun before the command, which "
            "starts it once for each"
        )
    if "SLURM_PROCID" not in os.environ:
        raise ConfigError("a Slurm job was allocated and this process is no task of it: put srun before the command")
    if found.processes > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            f"the Slurm job has {found.processes} tasks and does not say how many of them a node has: give "
            "--ntasks-per-node in the place of --ntasks, to sbatch or to srun"
        )


@contextmanager
def matching_trainer(devices: object, nodes: object) -> Iterator[None]:
    """Turn what Lightning says of a trainer of other processes than were started into a sentence.

    Args:
        devices: The setting ``trainer.devices``.
        nodes: The setting ``trainer.num_nodes``.

    Raises:
        ConfigError: They do not match.
    """
    try:
        yield
    except ValueError as error:
        found = launch()
        if found is None or "in Lightning, but the" not in str(error):
            raise
        raise _mismatch(found, devices, nodes) from error


def require_processes(devices: int, nodes: int) -> None:
    """Refuse a trainer of other processes than were started: some would do nothing, or all would wait.

    Args:
        devices: The trainer's devices on a node.
        nodes: Its nodes.

    Raises:
        ConfigError: They do not match.
    """
    found = launch()
    if found is not None and found.processes != devices * nodes:
        raise _mismatch(found, devices, nodes)


def _mismatch(found: Launch, devices: object, nodes: object) -> ConfigError:
    right = f"trainer.devices to {found.processes // found.nodes} and trainer.num_nodes to {found.nodes}"
    return ConfigError(
        f"trainer.devices is {devices} and trainer.num_nodes is {nodes}, but {found.by} started "
        f"{found.processes} process{'es' if found.processes > 1 else ''} on {found.nodes} "
        f"node{'s' if found.nodes > 1 else ''}: set {right}, or change {found.remedy}"
    )

"""A real Slurm of one node on this machine, while tests need it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_DAEMONS = ("munged", "slurmctld", "slurmd")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

_CONF = """
ClusterName=kdpl
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/node
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
GresTypes=gpu
KillWait=5
# jobs are scheduled at once, and not once a minute
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2
PartitionName=main Nodes={host} Default=YES MaxTime=UNLIMITED State=UP
"""
# devices that nothing opens: the job files ask for GPUs
_GRES = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero"))


def missing():
    """Why there can be no Slurm here; empty if there can be one."""
    gone = [name for name in (*_DAEMONS, "sbatch", "setpriv") if shutil.which(name) is None]
    if gone:
        return f"there is no {', '.join(gone)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root to start jobs"


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Cluster:
    """The daemons, all of whose state is in one folder; nothing of the system's Slurm is touched."""

    def __init__(self):
        # munge needs a path that others may traverse, which pytest's folders are not
        self.state = Path(tempfile.mkdtemp(prefix="kdpl_slurm_", dir="/tmp"))
        self.state.chmod(0o755)
        self._daemons = []
        self._hastened = set()
        self._env = {
            **os.environ,
            "SLURM_CONF": str(self.state / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        state = self.state
        for name in ("controller", "node"):
            (state / name).mkdir()
        key = state / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        ports = {"controller_port": _free_port(), "node_port": _free_port()}
        conf = _CONF.format(host=socket.gethostname().split(".")[0], state=state, **ports)
        (state / "slurm.conf").write_text(conf)
        (state / "gres.conf").write_text(_GRES)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={state}/munge.{ending}" for option, ending in files.items()]
        self._daemon("munged", "--foreground", f"--key-file={key}", *options)
        self._wait((state / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-c")
        self._wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False).stdout)

    def _daemon(self, name, *args):
        log = (self.state / f"{name}.out").open("w")
        command = ["setpriv", "--pdeathsig", "KILL", name, *args]
        options = {"stdout": log, "stderr": log, "start_new_session": True, "cwd": self.state}
        self._daemons.append(subprocess.Popen(command, env=self._env, **options))

    def _wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = (
                    f"{file.name}: {file.read_text()[-1500:]}" for file in self.state.glob("*.out")
                )
                raise AssertionError("\n".join(logs))
            time.sleep(0.5)

    def run(self, *command, cwd=None, check=True, **variables):
        """Run a command to its end, with these variables in its environment."""
        environment = {**self._env, **variables}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=cwd, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def submit(self, script, *args, options, cwd, **variables):
        """Submit a job; returns its number."""
        command = ("sbatch", "--parsable", *options, str(script), *map(str, args))
        return self.run(*command, cwd=cwd, **variables).stdout.strip().split(";")[0]

    def signal(self, job, *options):
        """Send the notice to a job, as Slurm does before its time limit."""
        # scancel retries for long if the job is requeued at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["scancel", "--signal=USR1", *options, job], env=self._env, timeout=3, check=False
            )

    def hasten(self, job):
        """Start a requeued job in seconds, not after two minutes as Slurm would.

        Returns the fields of the job, or of each element of an array.
        """
        text = self.run("scontrol", "show", "job", job, "-o").stdout
        known = [
            dict(pair.partition("=")[::2] for pair in line.split())
            for line in text.splitlines()
            if line
        ]
        for each in known:
            life = (each["JobId"], each.get("Restarts"))
            # once for each restart, or it would be delayed again and again; not at once, as the job is still ending
            waits = each["JobState"] == "PENDING" and each["Reason"] == "BeginTime"
            if waits and life not in self._hastened:
                self._hastened.add(life)
                update = ("scontrol", "update", f"JobId={each['JobId']}", "StartTime=now+3")
                self.run(*update, check=False)
        return known

    def finish(self, job):
        """Wait for a job's end, through requeues; returns its fields, or those of each element of an array."""
        looks = []

        def ended():
            looks.append(self.hasten(job))
            # twice: a job that is being requeued is, for a moment, like one that has ended
            return len(looks) > 1 and all(
                elements and all(element["JobState"] in _ENDED for element in elements)
                for elements in looks[-2:]
            )

        self._wait(ended, seconds=1500)
        return looks[-1]

    def clear(self):
        """End all jobs."""
        self.run("scancel", "--user=root", check=False)
        with contextlib.suppress(AssertionError):
            self._wait(lambda: not self.run("squeue", "-h", check=False).stdout)

    def stop(self):
        """Kill the daemons and what is left of jobs, and remove the state."""
        # daemons first, which would start others; jobs outlive them, as they do when Slurm is updated
        while pids := self._processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
            for daemon in self._daemons:
                daemon.wait()
        shutil.rmtree(self.state, ignore_errors=True)

    def _processes(self):
        """The daemons, which are in the folder of the state, and the jobs, which have its settings."""
        settings, pids = f"SLURM_CONF={self.state}/".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                started_here = (process / "cwd").readlink() == self.state
                if started_here or settings in (process / "environ").read_bytes():
                    pids.append(int(process.name))
        return pids

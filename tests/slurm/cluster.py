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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{cpus}
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


class Cluster:
    """The daemons, all of whose state is in one folder; nothing of the system's Slurm is touched."""

    cpus = 2

    def __init__(self):
        # munge needs a path that others may traverse, which pytest's folders are not
        self.state = Path(tempfile.mkdtemp(prefix="kdpl_slurm_", dir="/tmp"))
        self.state.chmod(0o755)
        self._daemons = []
        self._hastened = set()
        self.env = {**os.environ, "SLURM_CONF": str(self.state / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        state, host = self.state, socket.gethostname().split(".")[0]
        for name in ("controller", "node"):
            (state / name).mkdir()
        key = state / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        with socket.socket() as one, socket.socket() as other:
            ports = []
            for each in (one, other):
                each.bind(("127.0.0.1", 0))
                ports.append(each.getsockname()[1])
        conf = _CONF.format(host=host, state=state, controller_port=ports[0], node_port=ports[1], cpus=self.cpus)
        (state / "slurm.conf").write_text(conf)
        (state / "gres.conf").write_text(_GRES)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={state}/munge.{ending}" for option, ending in files.items()]
        self._daemon("munged", "--foreground", f"--key-file={key}", *options)
        self._wait((state / "munge.socket").exists, "munged does not answer", 20)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-c")
        self._wait(lambda: "idle" in self._ask("sinfo", "-h", "-o", "%T", check=False), "the node does not come up", 60)

    def _daemon(self, name, *args):
        log = (self.state / f"{name}.out").open("w")
        command = ["setpriv", "--pdeathsig", "KILL", name, *args]
        options = {"stdout": log, "stderr": log, "env": self.env, "start_new_session": True, "cwd": self.state}
        self._daemons.append(subprocess.Popen(command, **options))

    def _ask(self, *command, check=True):
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def _wait(self, condition, what, seconds):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}\n{self.logs()}"
            time.sleep(0.3)

    def logs(self):
        """The last messages of the daemons."""
        files = [*self.state.glob("*.out"), self.state / "munge.log"]
        return "\n".join(f"{file.name}: {file.read_text()[-1500:]}" for file in files if file.is_file())

    def submit(self, script, *args, options=(), cwd, env=None):
        """Submit a job; returns its number."""
        done = self.run("sbatch", "--parsable", *options, str(script), *map(str, args), cwd=cwd, env=env)
        return done.stdout.strip().split(";")[0]

    def run(self, *command, cwd, check=True, env=None):
        """Run a command of Slurm to its end."""
        environment = {**self.env, **(env or {})}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def signal(self, job, *options):
        """Send the notice to a job, as Slurm does before its time limit."""
        # scancel retries for long if the job is requeued at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--signal=USR1", *options, job], env=self.env, timeout=3, check=False)

    def fields(self, job):
        """The fields of a job, or of each element of an array."""
        text = self._ask("scontrol", "show", "job", job, "-o")
        return [dict(pair.partition("=")[::2] for pair in line.split()) for line in text.splitlines() if line]

    def hasten(self, job):
        """Start a requeued job in seconds, and not after two minutes as Slurm would; returns its fields."""
        known = self.fields(job)
        for each in known:
            life = (each["JobId"], each.get("Restarts"))
            # once for each restart, or it would be delayed again and again; not at once, as the job is still ending
            if each["JobState"] == "PENDING" and each["Reason"] == "BeginTime" and life not in self._hastened:
                self._hastened.add(life)
                self._ask("scontrol", "update", f"JobId={each['JobId']}", "StartTime=now+3", check=False)
        return known

    def finish(self, job, seconds=1500):
        """Wait for a job's end, through requeues; returns its fields, or those of each element of an array."""
        end = time.monotonic() + seconds
        while True:
            known = self.hasten(job)
            if all(each["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") for each in known):
                return known
            assert time.monotonic() < end, f"job {job}: {known}\n{self.logs()}"
            time.sleep(0.5)

    def queued(self):
        """The jobs that are pending or running."""
        return self._ask("squeue", "-h", "-o", "%i").split()

    def clear(self):
        """End all jobs."""
        self._ask("scancel", "--user=root", check=False)
        with contextlib.suppress(AssertionError):
            self._wait(lambda: not self._ask("squeue", "-h", check=False), "jobs stay", 20)

    def stop(self):
        """End all jobs and daemons, and remove the state."""
        if len(self._daemons) == len(_DAEMONS):
            self.clear()
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.state, ignore_errors=True)

    def _left(self):
        """The processes of jobs that outlived the daemons, known by this cluster's configuration."""
        mark = f"SLURM_CONF={self.state}/slurm.conf".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                    yield int(folder.name)

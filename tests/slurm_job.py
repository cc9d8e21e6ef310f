"""A process that believes itself in a job of Slurm, whose ``scontrol`` writes down what it is asked."""

import os
import signal
import sys
import threading

from kdpl.runtime.slurm import SIGNAL


def pretend(monkeypatch, folder, refusal=None):
    """Make this process believe it; gives the file that has what scontrol was asked."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    asked = folder / "asked"
    answer = "" if refusal is None else f"print({refusal!r}, file=sys.stderr); sys.exit(1)"
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], file=open({str(asked)!r}, 'a'))\n{answer}\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    return asked


def send():
    """Send the notice to the main thread: those that pytest has begun before do not hold it back."""
    signal.pthread_kill(threading.main_thread().ident, SIGNAL)


def forget():
    """Forget whatever notice has come, and hold back none."""
    signal.signal(SIGNAL, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
    signal.signal(SIGNAL, signal.SIG_DFL)

"""A process that believes it is in a job of Slurm, whose ``scontrol`` writes down what it is asked."""

import os
import sys


def pretend(monkeypatch, folder, refusal=None):
    """Make this process believe it; returns the file that has what scontrol was asked."""
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

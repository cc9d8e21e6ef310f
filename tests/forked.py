"""Processes forked from one that has imported the libraries, as importing takes longer than what tests do in them."""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

# none of them starts a thread that a process would miss, as onnxruntime does, or reads what tests set, as litserve does
LIBRARIES = (
    *("torch", "torchvision.transforms.v2", "lightning.pytorch.cli", "torchmetrics.classification"),
    *("open_clip", "transformers", "timm", "sklearn.linear_model", "sklearn.model_selection"),
    *("onnx", "onnxscript", "torch.onnx"),
    *("torch.export._trace", "torch._functorch.aot_autograd"),
    *("onnxscript.function_libs.torch_lib.ops", "networkx", "sympy.tensor.tensor"),
    *("PIL.Image", "rich.progress", "yaml", "jinja2"),
)
_MESSAGE_BYTES = 2**20


class ForkedProcess:
    """``python`` with these arguments, in a process group of its own: as ``subprocess.Popen``, but begins at once."""

    def __init__(self, args, env, cwd=".", stdout=subprocess.PIPE, stderr=subprocess.PIPE):
        self.returncode = None
        (out, self.stdout), (err, self.stderr) = map(_ends, (stdout, stderr))
        task = {"args": [*map(str, args)], "env": env, "cwd": str(Path(cwd).absolute())}
        self.pid = _ask(task, [out, err])
        os.close(out)
        os.close(err)
        self._end = os.pidfd_open(self.pid)

    def poll(self, timeout=0):
        """The exit code, None while it runs."""
        if self.returncode is None and select.select([self._end], [], [], timeout)[0]:
            os.close(self._end)
            self.returncode = _ask({"ended": self.pid})
        return self.returncode

    def wait(self):
        """Wait for its end; returns the exit code."""
        return self.poll(timeout=None)

    def communicate(self):
        """What it prints to either stream, which is less on stderr than a pipe holds, until its end."""
        printed = [stream and stream.read() for stream in (self.stdout, self.stderr)]
        self.wait()
        return printed

    def send_signal(self, number):
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def _ends(stream):
    """What a process writes to, and what a test reads."""
    if stream == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_WRONLY), None
    if stream == subprocess.PIPE:
        read, written = os.pipe()
        return written, os.fdopen(read, encoding="utf-8")
    return os.dup(stream.fileno()), None


@cache
def _server():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    # -P: no module of the tests stands in for a library; ends with this process, which closes the socket
    subprocess.Popen(
        [sys.executable, "-P", __file__, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    return ours


def _ask(task, streams=()):
    socket.send_fds(_server(), [json.dumps(task).encode()], streams)
    return int(_server().recv(_MESSAGE_BYTES))


def _serve(connection):
    """Answer each task with the number of its process, and the end of a process with its exit code."""
    # a shell starts its background jobs with SIGINT ignored, and so would be all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):  # of an extra
            importlib.import_module(name)
    while True:
        message, streams, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 2)
        if not message:
            return
        task = json.loads(message)
        if "ended" in task:
            answer = os.waitstatus_to_exitcode(os.waitpid(task["ended"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                _run(streams, **task)
                return
            for stream in streams:
                os.close(stream)
        connection.send(str(answer).encode())


def _run(streams, args, env, cwd):
    """Do what ``python`` does with -m or -c."""
    os.setsid()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    # of the paths' first, as each Python does when it starts
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    option, what, *sys.argv[1:] = args
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = option
        exec(compile(what, "script", "exec"), {"__name__": "__main__"})  # noqa: S102


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""Scripts in processes that are forked from one which has imported the libraries, as that takes longer than the scripts."""

import importlib
import json
import os
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

# none of them starts a thread that a script would miss, as onnxruntime does
LIBRARIES = (
    *("torch", "torchvision.transforms.v2", "lightning.pytorch.cli", "torchmetrics.classification"),
    *("open_clip", "transformers", "timm", "sklearn.linear_model", "sklearn.model_selection"),
    *("onnx", "onnxscript", "torch.onnx"),
    *("torch.export._trace", "torch._functorch.aot_autograd"),
    *("onnxscript.function_libs.torch_lib.ops", "networkx", "sympy.tensor.tensor"),
    *("litserve", "PIL.Image", "rich.progress", "yaml", "jinja2"),
)


@contextmanager
def forked():
    """Yield a function that runs a script as ``python -c`` does, with a folder as PYTHONPATH and its arguments.

    It returns exit code and what was printed to either stream.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    server = subprocess.Popen(
        # -P: no module of the tests stands in for a library
        [sys.executable, "-P", __file__],
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
        text=True,
        cwd="/",
        env=environment,
    )

    def run(script, folder, *args):
        task = {"script": script, "folder": str(folder), "args": [*map(str, args)]}
        print(json.dumps(task), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return code, *((Path(folder) / name).read_text() for name in ("out.txt", "err.txt"))

    try:
        yield run
    finally:
        server.stdin.close()
        server.wait()


def _serve():
    """Read a task from each line, and answer with the exit code of its process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(script, folder, args):
    os.chdir(folder)
    for stream, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    sys.argv = ["-c", *args]
    try:
        exec(compile(script, "script", "exec"), {"__name__": "__main__"})  # noqa: S102
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    sys.exit()


if __name__ == "__main__":
    _serve()

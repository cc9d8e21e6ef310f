"""The service as a process with its workers: start, stop, overload and failures of its parts."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from PIL import Image
from runs import noise, processes_of, start_process, wait_for
from world import refused

from kdpl.classifier import Classifier
from kdpl.errors import ArtifactError
from kdpl.serve.api import ClassifierApi
from kdpl.serve.server import Limits, build, free_port, serve

pytestmark = pytest.mark.slow

# in every process of the service, since each reads it when it starts
NO_NETWORK = """
import sys
def forbid(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        open({log!r}, "a").write(f"{{event}} {{arguments}}\\n")
        raise OSError("no network")
sys.addaudithook(forbid)
"""


@contextmanager
def service(folder, classifier, *options, **variables):
    """Serve on a free port, without a network of its own; yields the process and its address."""
    (folder / "hooks").mkdir()
    (folder / "hooks" / "sitecustomize.py").write_text(
        NO_NETWORK.format(log=str(folder / "network"))
    )
    paths = f"{folder / 'hooks'}:{os.environ.get('PYTHONPATH', '')}"
    args = ["serve", str(classifier), "--host=127.0.0.1", "--port=0", *options]
    process = start_process(args, stdout=subprocess.PIPE, PYTHONPATH=paths, **variables)
    try:
        line = process.stdout.readline()
        ready = re.fullmatch("service: http://(.*) is ready \\(Ctrl-C ends it\\)\n", line)
        assert ready, process.stderr.read()
        address = ready[1]
        assert not is_refused(place_of(address))
        yield process, address
        assert not (folder / "network").exists()
    finally:
        for pid in processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def picture(edge):
    return png(noise(edge, edge))


def bomb(edge):
    """A small file of a large white image."""
    return png(Image.new("1", (edge, edge), 1))


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def send(address, body):
    """Send a request on a connection of its own; returns the status, and the sentence of a refusal."""
    connection = HTTPConnection(address, timeout=120)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
        response = connection.getresponse()
        return response.status, str(json.loads(response.read()).get("detail", ""))
    finally:
        connection.close()


def at_once(address, number, edge):
    """Send requests at the same time, each on its own connection; counts the statuses."""
    barrier, image = threading.Barrier(number), picture(edge)

    def client(_):
        barrier.wait()
        return send(address, image)[0]

    with ThreadPoolExecutor(number) as pool:
        return Counter(pool.map(client, range(number)))


def test_it_stays_alive_under_load_and_attack(classifier, tmp_path):
    with service(tmp_path, classifier, "--max-waiting=8") as (process, address):
        noise(50, 40).save(tmp_path / "a.png")
        ((expected,),) = Classifier.load(classifier).predict([tmp_path / "a.png"])
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            assert client.get("/health").text == "ok"
            files = {"images": ("a.png", (tmp_path / "a.png").read_bytes())}
            (row,) = client.post("/predict", files=files).json()["predictions"]
            assert (row["path"], row["class"]) == ("a.png", expected.class_name)
            assert row["probability"] == pytest.approx(expected.probability, abs=2e-6)
            statuses = at_once(address, 60, 64)
            assert set(statuses) == {200, 503}
            assert statuses[200] >= 8
            bodies = {bytes(30_000_000): 413, bomb(20_000): 422, b"x": 422, b"": 400}
            assert [send(address, body)[0] for body in bodies] == [*bodies.values()]
            # a worker that is killed is replaced
            (worker,) = workers_of(process)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: client.get("/health").status_code == 503)
            wait_for(lambda: client.get("/health").status_code == 200)
            assert send(address, picture(40))[0] == 200
        # a signal to all of its processes ends them without a word of theirs
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 143
        assert process.stderr.read().splitlines()[-1] == "terminated"
        wait_for(lambda: not processes_of(process.pid))


def workers_of(process):
    """The processes that the service has started anew and that have loaded torch, unlike that of the queues."""
    folders = [Path(f"/proc/{pid}") for pid in processes_of(process.pid)]
    spawned = [folder for folder in folders if b"spawn_main" in (folder / "cmdline").read_bytes()]
    return [int(folder.name) for folder in spawned if "libtorch" in (folder / "maps").read_text()]


def test_requests_at_the_time_of_sigterm_are_answered(classifier, tmp_path):
    image = picture(40)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}"
    request = f"{head}\r\nX-API-Key: secret\r\n\r\n".encode() + image
    with service(tmp_path, classifier, "--max-waiting=1", LIT_SERVER_API_KEY="secret") as (
        process,
        address,
    ):
        assert send(address, image)[0] == 401
        server = place_of(address)
        with (
            socket.create_connection(server) as connection,
            socket.create_connection(server) as unused,
        ):
            connection.sendall(request[:-1])
            # the one slot is taken
            wait_for(lambda: httpx.post(f"http://{address}/predict").status_code == 503)
            process.send_signal(signal.SIGTERM)
            # the end has begun
            assert unused.recv(4096) == b""
            connection.sendall(request[-1:])
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"predictions"' in answer
        assert process.wait() == 143


def place_of(address):
    host, port = address.split(":")
    return host, int(port)


def is_refused(place):
    try:
        socket.create_connection(place).close()
    except ConnectionResetError:
        pass  # closed in the midst of it: look again
    except ConnectionRefusedError:
        return True
    return False


def test_ctrl_c_ends_all_of_its_processes_without_a_traceback(classifier, tmp_path):
    with service(tmp_path, classifier) as (process, address):
        assert send(address, picture(40))[0] == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "interrupted\n"
        wait_for(lambda: not processes_of(process.pid))


def test_a_worker_that_cannot_start_ends_the_service(classifier, tmp_path):
    loaded = Classifier.load(classifier)
    server = build(ClassifierApi(str(tmp_path / "none")), loaded, "cpu", 1, Limits(1000, 1, 1, 30))
    with refused(ArtifactError, "a worker of the service failed to start .*: see"):
        serve(server, "127.0.0.1", free_port("127.0.0.1", 0))


def test_a_killed_service_leaves_neither_workers_nor_its_port(classifier, tmp_path):
    with service(tmp_path, classifier) as (process, address):
        workers = workers_of(process)
        process.kill()
        process.wait()
        wait_for(lambda: is_refused(place_of(address)))
        wait_for(lambda: not {*workers} & {*processes_of(process.pid)})
        assert workers

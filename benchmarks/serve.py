"""``python -m benchmarks.serve CLASSIFIER``: what the service holds under load, and what it refuses."""

import argparse
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

_PNG = {"Content-Type": "image/png"}


def picture(edge: int, seed: int = 0) -> bytes:
    """Return a PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return _file(Image.fromarray(pixels))


def bomb(edge: int) -> bytes:
    """Return a small PNG file of a large white image."""
    return _file(Image.new("1", (edge, edge), 1))


def _file(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@contextmanager
def service(classifier: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the service on a free port; yields its process and its address."""
    command = [sys.executable, "-m", "kdpl", "serve", classifier, "--port=0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        line = process.stdout.readline() if process.stdout is not None else ""
        address = urlsplit(line.split()[1])
        # it listens as soon as a worker is ready
        while socket.socket().connect_ex((address.hostname, address.port)):
            time.sleep(0.01)
        yield process, address.netloc
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def send(address: str, body: bytes, headers: dict[str, str] = _PNG) -> tuple[int, str]:
    """Send a request on a connection of its own; returns the status, and the sentence of a refusal."""
    connection = HTTPConnection(address, timeout=120)
    try:
        return _answer(connection, body, headers)
    finally:
        connection.close()


def _answer(connection: HTTPConnection, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection.request("POST", "/predict", body, headers)
    response = connection.getresponse()
    return response.status, str(json.loads(response.read()).get("detail", ""))


def load(address: str, clients: int, seconds: float, edge: int) -> tuple[Counter[int], list[float]]:
    """Let clients each send one image after the other; returns the statuses and the latencies in seconds."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection, image = HTTPConnection(address, timeout=120), picture(edge, number)
        while (start := time.perf_counter()) < end:
            status, _ = _answer(connection, image, _PNG)
            latencies.append(time.perf_counter() - start)
            statuses[status] += 1
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return statuses, latencies


def memory(group: int) -> dict[str, float]:
    """Return the memory of a group's processes in MB: resident, and that which each has written for itself alone."""
    total = {"Rss": 0, "Private_Dirty": 0}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) != group:
                continue
            lines = stat.with_name("smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for name, value in (
            line.split()[:2] for line in lines if line.startswith(("Rss:", "Private_Dirty:"))
        ):
            total[name[:-1]] += int(value)
    return {name: kb / 1024 for name, kb in total.items()}


def slow_body(address: str) -> str:
    """Send the body of a request one byte a second; says what came back, and when."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    host, port = address.split(":")
    start, found = time.perf_counter(), b""
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head)
        connection.settimeout(1)
        while time.perf_counter() - start < 120:
            try:
                found = connection.recv(4096)
                break
            except TimeoutError:
                connection.sendall(b"x")
            except OSError:
                break
    said = found.partition(b"\r\n")[0].decode() or "closed"
    return f"{said} after {time.perf_counter() - start:.0f} s"


def at_once(address: str, number: int, edge: int) -> Counter[int]:
    """Send requests at the same time, each on its own connection; returns the statuses."""
    barrier, image = threading.Barrier(number), picture(edge)

    def client(_: int) -> int:
        barrier.wait()
        return send(address, image)[0]

    with ThreadPoolExecutor(number) as pool:
        return Counter(pool.map(client, range(number)))


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classifier")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--edge", type=int, default=224, help="edge of the images sent")
    options, more = parser.parse_known_args()
    start = time.perf_counter()
    with service(options.classifier, *more) as (process, address):
        print(f"ready after {time.perf_counter() - start:.1f} s, {os.cpu_count()} cores")
        load(address, options.clients, options.seconds / 6, options.edge)
        before = memory(process.pid)
        statuses, latencies = load(address, options.clients, options.seconds, options.edge)
        after = memory(process.pid)
        cuts = statistics.quantiles(latencies, n=100)
        print(
            f"{options.clients} clients, {options.seconds:g} s, PNG of {options.edge} × "
            f"{options.edge}:"
        )
        print(f"  statuses {dict(statuses)}, {len(latencies) / options.seconds:.0f} images/s")
        print("  ms " + ", ".join(f"p{p} {1000 * cuts[p - 1]:.1f}" for p in (50, 95, 99)), end="")
        print(f", largest {1000 * max(latencies):.1f}")
        print(
            "  MB "
            + ", ".join(f"{name} {before[name]:.0f} -> {after[name]:.0f}" for name in before)
        )
        cases: dict[str, Callable[[], object]] = {
            "body of 50 MB": lambda: send(address, bytes(50_000_000)),
            "bomb of 400 million pixels": lambda: send(address, bomb(20_000)),
            "bomb of 100 million pixels": lambda: send(address, bomb(10_000)),
            "49 million pixels": lambda: send(address, bomb(7_000)),
            "garbage": lambda: send(address, os.urandom(100_000)),
            "empty body": lambda: send(address, b""),
            "slow body": lambda: slow_body(address),
            "200 at once": lambda: dict(at_once(address, 200, options.edge)),
            "one image after it": lambda: send(address, picture(options.edge)),
        }
        for name, run in cases.items():
            print(f"{name}: {run()}", flush=True)
        print(
            "MB at the end "
            + ", ".join(f"{name} {mb:.0f}" for name, mb in memory(process.pid).items())
        )
    print(f"SIGTERM: exit code {process.returncode}")


if __name__ == "__main__":
    main()

"""The whole service: workers and gate, with limits on requests, and its start and end."""

import asyncio
import json
import logging
import math
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import torch
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from litserve import LitServer, configure_logging
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.serve.api import PATH, ClassifierApi, end_with_parent

_MAX_CONNECTIONS = 512
_MOMENT = 0.2  # seconds


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        size: Most bytes of the body.
        images: Most images in a request.
        waiting: Most requests at once, both waiting and in the workers' batches.
        seconds: Longest time until the answer, including the upload.
    """

    size: int
    images: int
    waiting: int
    seconds: float


class Gate:
    """ASGI middleware that limits the number and the time of requests to classify images.

    ``ready`` is called once the service listens, in the process of the HTTP server.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, ready: Callable[[], None] = lambda: None
    ) -> None:
        self.app, self.limits, self.slots = app, limits, asyncio.Semaphore(limits.waiting)
        self.ready = ready
        end_with_parent()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            # a worker is ready, and uvicorn listens a moment after the application has begun
            asyncio.get_running_loop().call_later(_MOMENT, self.ready)
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        if self.slots.locked():
            detail = f"{self.limits.waiting} requests are waiting: try again later"
            await JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})(scope, receive, send)
            return
        try:
            async with self.slots, asyncio.timeout(self.limits.seconds):
                with suppress(ClientDisconnect):
                    await self.app(scope, receive, send)
        except TimeoutError:
            detail = f"there is no answer after {self.limits.seconds:g} s: try again later"
            # close, or the rest of the body would be taken for the next request
            answer = JSONResponse({"detail": detail}, 504, {"Connection": "close"})
            await answer(scope, receive, send)


def free_port(host: str, port: int) -> int:
    """Return a port to listen on, any free one for 0; ConfigError if that is impossible."""
    if 0 < port < 1024:
        raise ConfigError(f"--port {port} is kept for the system: give one from 1024, or 0 for any")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            return int(listener.getsockname()[1])
    except (OSError, OverflowError) as error:
        subject = f"the service cannot listen on {host} port {port} ({reason(error)})"
        raise ConfigError(
            f"{subject}: give another --host or --port, or --port 0 for any"
        ) from error


def build(
    api: ClassifierApi,
    classifier: Classifier,
    device: str,
    workers: int,
    limits: Limits,
    ready: Callable[[], None] = lambda: None,
) -> LitServer:
    """Build the service; ``classifier`` is the one that the workers load from its folder.

    ``ready`` is called once it can be asked.
    """
    # the workers, behind the gate
    server = LitServer(
        api,
        accelerator=device,
        devices=torch.cuda.device_count() if device == "cuda" else 1,
        workers_per_device=workers,
        # a request that has waited longer is not begun
        timeout=limits.seconds,
        max_payload_size=limits.size,
        middlewares=[(Gate, {"limits": limits, "ready": ready})],
        model_metadata={
            "kdpl": __version__,
            **classifier.card_facts(),
            "rule": json.loads(json.dumps(vars(api.rule), default=repr)),
            "limits": {"max_images": limits.images, "max_waiting": limits.waiting},
        },
        restart_workers=True,
    )
    server.uvicorn_graceful_timeout = math.ceil(limits.seconds)
    app = server.app
    app.title, app.version = "kdpl", __version__
    app.state.max_images = limits.images

    detail = "the field images holds no file: give it a file name and the image"
    app.add_exception_handler(
        RequestValidationError, lambda *_: JSONResponse({"detail": detail}, 422)
    )
    # no log of invalid forms, since the client gets the reason
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return server


def serve(server: LitServer, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; raise the signal again once pending requests are answered."""
    # a forked process of LitServe's queues would inherit the socket, and keep the port if this
    # process is killed
    multiprocessing.set_start_method("spawn", force=True)
    main_process, signals = os.getpid(), []

    def stop(number: int, _: FrameType | None) -> None:
        # the forked process of the HTTP server has this handler too, and ends otherwise
        if os.getpid() == main_process:
            signals.append(number)
            # the monitor of the workers would report their end
            configure_logging("critical")
            raise KeyboardInterrupt  # LitServe ends at this

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(
            host,
            port,
            num_api_servers=1,
            log_level="error",
            generate_client_file=False,
            ws="none",
            limit_concurrency=_MAX_CONNECTIONS,
            server_header=False,
            proxy_headers=False,
        )
    except RuntimeError as error:
        failed = f"a worker of the service failed to start ({reason(error)})"
        raise ArtifactError(f"{failed}: see the lines above") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # LitServe leaves the other workers running if one fails to start
        for process in multiprocessing.active_children():
            process.terminate()
    signal.raise_signal(signals[0])

"""The service as a whole: workers, gate, pages for programs, and the socket that it listens on."""

import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from litserve import LitServer, configure_logging
from litserve.utils import wrap_litserve_start
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kdpl.classifier import Classifier
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.serve.api import PATH, Answers, ClassifierApi
from kdpl.serve.gate import Gate, ImpatientProtocol, Limits, Metrics
from kdpl.tasks import DecisionRule
from kdpl.version import __version__

_MAX_CONNECTIONS = 512
# an idle worker looks for requests once a second
_LEAST_PATIENCE = 5

# what LitServe's route cannot say of itself
_RAW_BODY = {"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
_DETAIL = {"type": "object", "properties": {"detail": {"type": "string"}}}
_REFUSAL = {"description": "Refused; detail says why", "content": {"application/json": {"schema": _DETAIL}}}


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address, whose port 0 is any; a ConfigError says why that is impossible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        said = f"the service cannot listen on {host} port {port} ({reason(error)})"
        raise ConfigError(f"{said}: give another --host or --port, or --port 0 for any") from error


def build(answers: Answers, classifier: Classifier, device: str, workers: int, limits: Limits) -> LitServer:
    """Put the service together; ``classifier`` is the one that its workers will load from its folder."""
    metrics, devices = Metrics(), torch.cuda.device_count() if device == "cuda" else 1
    server = LitServer(
        ClassifierApi(answers, workers, devices, max(limits.seconds, _LEAST_PATIENCE)),
        accelerator=device,
        devices=devices,
        workers_per_device=workers,
        # what has waited for so long is not begun, since the gate would end it
        timeout=limits.seconds / 2,
        middlewares=[(Gate, {"path": PATH, "limits": limits, "metrics": metrics})],
        restart_workers=True,
    )
    app = server.app
    app.title, app.version = "kdpl", __version__
    app.state.max_images, app.state.images = limits.images, metrics.images

    app.add_exception_handler(RequestValidationError, _refuse)

    facts = {
        "model": {
            "kdpl": __version__,
            **classifier.card_facts(),
            "rule": _rule_facts(answers.rule, classifier.class_names),
        },
        "server": {
            "devices": server.devices,
            "workers_per_device": workers,
            "timeout": limits.seconds,
            "max_megabytes": limits.size / 2**20,
            "max_images": limits.images,
            "max_waiting": limits.waiting,
        },
    }
    # LitServe's own page shows the timeout above, which is half of it, and not the gate's limits
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", None) != server.info_path]
    app.add_api_route(server.info_path, lambda: facts, summary="Classes, models, rule and limits")

    def count() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_api_route("/metrics", count, summary="Counts for Prometheus")
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path == PATH:
            route.summary, route.openapi_extra = "Classify images", _RAW_BODY
            route.responses["4XX"] = _REFUSAL
    # its complaints about a client's forms, whose sentence the client gets
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return server


def _rule_facts(rule: DecisionRule, names: Sequence[str]) -> dict[str, Any]:
    """A rule's fields, with thresholds of classes by name; None for a class that is always rejected."""
    own = {name: rule.class_threshold(label) for label, name in enumerate(names)}
    finite = {name: least if math.isfinite(least) else None for name, least in own.items()}
    return {**asdict(rule), "class_thresholds": None if rule.class_thresholds is None else finite}


def _refuse(*_: object) -> JSONResponse:
    return JSONResponse({"detail": "the field images holds no file: give it a file name and the image"}, 422)


def serve(server: LitServer, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, which then is raised after the requests at that time have been answered."""
    configure_logging(logging.WARNING, stream=sys.stderr)
    _shield_forks()
    config = uvicorn.Config(
        server.app,
        http=ImpatientProtocol,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(2 * server.timeout),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="error",
    )
    # the process of the queues shares the memory of this one, until the garbage collector of either writes into it
    gc.freeze()
    with wrap_litserve_start(server, worker_monitor=True):
        try:
            _require_workers(server)
            # not before, since the process of the queues would inherit it, and keep the port when this one ends
            with listen(host, port) as listener:
                host, port = listener.getsockname()[:2]
                print(f"service: http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
                if not host.startswith("127.") and host != "::1":
                    print("everybody who can reach this machine over the network can use the service", file=sys.stderr)
                uvicorn.Server(config).run([listener])
        finally:
            # the monitor of the workers would report that they have ended
            configure_logging(logging.CRITICAL)


def _require_workers(server: LitServer) -> None:
    """Wait until a worker is ready."""
    try:
        server.verify_worker_status()
    except RuntimeError as error:
        raise ArtifactError(
            f"a worker of the service failed to start ({reason(error)}): see the lines above"
        ) from error


def _shield_forks() -> None:
    """Let a SIGTERM to all processes, as of systemd, end the queues' process only when this one is done with it."""
    before, own = signal.getsignal(signal.SIGTERM), os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own and callable(before):
            before(number, frame)

    if callable(before):
        signal.signal(signal.SIGTERM, terminate)

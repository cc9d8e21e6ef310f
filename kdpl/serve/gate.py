"""What stands before the workers: limits on connections and requests, and the counts of both for Prometheus."""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_SECONDS = 10
_ANSWER_SECONDS = 10
# as nginx counts clients that have gone
_CLIENT_CLOSED = 499


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        size: Bytes of its body.
        images: Images in it.
        waiting: Requests at once, of which the workers classify a batch and the others wait.
        seconds: Time until its answer, with that for its body.
    """

    size: int
    images: int
    waiting: int
    seconds: float


class Metrics:
    """The counts of a service since its start, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("kdpl_requests", "requests to classify images", ["status"], registry=self.registry)
        self.images = Counter("kdpl_images", "images in accepted requests", registry=self.registry)
        self.active = Gauge("kdpl_requests_active", "requests that are read, wait or run", registry=self.registry)
        self.seconds = Histogram("kdpl_request_seconds", "time until the answer", registry=self.registry)


class Gate:
    """ASGI middleware that refuses requests beyond the limits, ends those that take too long, and counts all."""

    def __init__(self, app: ASGIApp, path: str, limits: Limits, metrics: Metrics) -> None:
        self.app, self.path, self.limits, self.metrics = app, path, limits, metrics
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), _CLIENT_CLOSED

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._admit(scope, receive, noted)
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, noted)
        except ClientDisconnect:
            pass
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits, size, complete = self.limits, 0, False
        too_large = HTTPException(413, f"the body is larger than {limits.size} bytes: send fewer or smaller images")
        if int(Headers(scope=scope).get("content-length", 0)) > limits.size:
            raise too_large
        if self.active >= limits.waiting:
            raise HTTPException(503, f"{limits.waiting} requests are waiting: try again later", {"Retry-After": "1"})

        async def counted() -> Message:
            nonlocal size, complete
            message = await receive()
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > limits.size:
                raise too_large
            return message

        async def answered(message: Message) -> None:
            # from here on it is up to the client, whose time the protocol limits
            deadline.reschedule(None)
            await send(message)

        self.active += 1
        self.metrics.active.set(self.active)
        try:
            async with asyncio.timeout(limits.seconds) as deadline:
                await self.app(scope, counted, answered)
        except TimeoutError:
            late = f"after {limits.seconds:g} s"
            if complete:
                raise HTTPException(504, f"there is no answer {late}: try again later") from None
            said = f"the body is incomplete {late}: send fewer or smaller images"
            raise HTTPException(408, said, {"Connection": "close"}) from None
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)


class ImpatientProtocol(H11Protocol):
    """Ends connections of clients that neither send nor read, which uvicorn waits for without limit.

    One on which the head of a request does not arrive in time is closed. One whose client reads nothing of its answers
    for a while is aborted, since closing it would wait until they have been sent.
    """

    _head_deadline: asyncio.TimerHandle | None = None
    _answer_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        # pauses writing from the first byte that the client leaves, not from 64 KiB on
        transport.set_write_buffer_limits(0)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, or of a body whose request is answered already."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._await_reading(math.inf)

    def resume_writing(self) -> None:
        """Wait no more, since the client has read everything."""
        super().resume_writing()
        _cancel(self._answer_deadline)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        super().connection_lost(exc)
        _cancel(self._head_deadline)
        _cancel(self._answer_deadline)

    def _await_reading(self, before: float) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._answer_deadline = self.loop.call_later(_ANSWER_SECONDS, self._await_reading, left)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._head_deadline)
            self._head_deadline = None
        elif self._head_deadline is None:
            self._head_deadline = self.loop.call_later(_HEAD_SECONDS, self.transport.close)


def _cancel(deadline: asyncio.TimerHandle | None) -> None:
    if deadline is not None:
        deadline.cancel()

"""Limits on requests before they reach the workers, and counts for Prometheus."""

import asyncio
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdpl.serve.api import PATH, end_with_parent

# nginx's status for clients that have gone
_CLIENT_CLOSED = 499


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


class Metrics:
    """The counts of a service since its start, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kdpl_requests", "requests to classify images", ["status"], registry=self.registry
        )
        self.images = Counter("kdpl_images", "images in accepted requests", registry=self.registry)
        self.active = Gauge(
            "kdpl_requests_active", "requests that are read, wait or run", registry=self.registry
        )
        self.seconds = Histogram(
            "kdpl_request_seconds", "time until the answer", registry=self.registry
        )


class Gate:
    """ASGI middleware that limits the number and the time of requests, and counts them."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.slots = asyncio.Semaphore(limits.waiting)
        # runs in the process of the HTTP server
        end_with_parent()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; limits and counts are for images to classify only."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        status = 500

        # remember the status to count it
        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            with self.metrics.seconds.time():
                await self._admit(scope, receive, noted)
        except ClientDisconnect:
            status = _CLIENT_CLOSED
        finally:
            self.metrics.requests.labels(status).inc()

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.slots.locked():
            detail = f"{self.limits.waiting} requests are waiting: try again later"
            await JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})(scope, receive, send)
            return
        try:
            async with self.slots, asyncio.timeout(self.limits.seconds):
                with self.metrics.active.track_inprogress():
                    await self.app(scope, receive, send)
        except TimeoutError:
            detail = f"there is no answer after {self.limits.seconds:g} s: try again later"
            # close, or the rest of the body would be taken for the next request
            await JSONResponse({"detail": detail}, 504, {"Connection": "close"})(
                scope, receive, send
            )

"""Limits on requests before they reach the workers."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from kdpl.serve.api import PATH, end_with_parent


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
    """ASGI middleware that limits the number and the time of requests to classify images."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.slots = app, limits, asyncio.Semaphore(limits.waiting)
        # runs in the process of the HTTP server
        end_with_parent()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
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

"""Images of a request, and the workers that classify them in batches, each in its own process."""

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import RawArray, parent_process
from typing import Annotated, Any, NamedTuple

import torch
from fastapi import Depends, File, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse
from litserve import LitAPI, configure_logging
from litserve.loops import BatchedLoop
from PIL import Image
from pydantic import BaseModel

from kdpl.classifier import Classifier
from kdpl.classifier.bulk import columns, to_row
from kdpl.classifier.sources import MAX_UPLOAD_PIXELS
from kdpl.classifier.tables import Row
from kdpl.data.decoding import Decoding, open_image
from kdpl.data.parallel import cores
from kdpl.errors import visible
from kdpl.tasks import DecisionRule

PATH = "/predict"

_MAX_BATCH = 64
_FORMAT = "send files in the field images of multipart/form-data, or one image as the body with its type, as image/jpeg"


@dataclass(frozen=True)
class Answers:
    """How a worker predicts: the classifier's folder, and options as of the predict command."""

    classifier: str
    top_k: int = 1
    rule: DecisionRule = DecisionRule()


class Upload(NamedTuple):
    """A file that a client sent, by the name that the client gave it, made visible."""

    name: str
    content: bytes

    def open(self, decoding: Decoding) -> Image.Image:
        """Decode it as RGB; raises a DataError if it is unreadable or too large. The name is never a path."""
        return open_image(self.name, self.content, decoding, MAX_UPLOAD_PIXELS)


class Predictions(BaseModel):
    """Rows as in a table of the predict command, one for each image, in the order sent."""

    predictions: list[dict[str, str | float | None]]


async def read_uploads(
    request: Request,
    images: Annotated[list[UploadFile], File(description="image files")] = [],  # noqa: B006
) -> list[Upload]:
    """Read the images of a request from its form, or from its whole body; an HTTPException says what is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = [Upload(visible(each.filename or "image"), await each.read()) for each in images]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        content = await request.body()
        found = [Upload("body", content)] if content else []
    else:
        raise HTTPException(415, f"the Content-Type is {kind or 'missing'}: {_FORMAT}")
    if not found:
        raise HTTPException(400, f"there is no image in the request: {_FORMAT}")
    if len(found) > request.app.state.max_images:
        raise HTTPException(413, f"there are {len(found)} images, at most {request.app.state.max_images}: send fewer")
    request.app.state.images.inc(len(found))
    return found


class _Rest:
    """A queue of which the first request has been taken already."""

    def __init__(self, first: Any, queue: Any) -> None:
        self.first, self.queue = first, queue

    def get_nowait(self) -> Any:
        if self.first is None:
            return self.queue.get_nowait()
        first, self.first = self.first, None
        return first


class SleepingLoop(BatchedLoop):  # type: ignore[misc]
    """Takes all requests that wait, as LitServe's loop, but sleeps while there are none, which that one does not."""

    def get_batch_requests(self, lit_api: LitAPI, request_queue: Any, transport: Any) -> Any:
        """Wait up to a second for a request; returns it with those behind it, and those that are too old."""
        lit_api.beat()
        first = self.get_request(request_queue, timeout=1.0)
        service = parent_process()
        if service is not None and not service.is_alive():
            raise SystemExit  # it was killed, and could not end its workers
        rest = _Rest(first, request_queue)
        return ([], []) if first is None else super().get_batch_requests(lit_api, rest, transport)


class ClassifierApi(LitAPI):  # type: ignore[misc]
    """Classifies the images of all requests that wait, as the predict command does.

    Args:
        answers: How to predict.
        workers: Processes on each device, which share the cores.
        devices: Devices.
        patience: Seconds for which a worker may take no request before it counts as hanging.
    """

    def __init__(self, answers: Answers, workers: int, devices: int, patience: float) -> None:
        super().__init__(max_batch_size=_MAX_BATCH, api_path=PATH, loop=SleepingLoop())
        self.answers, self.threads, self.patience = answers, max(1, cores() // workers), patience
        # when each worker last looked for requests, by the clock that all processes of a machine share
        self.beats = RawArray("d", [time.monotonic()] * workers * devices)

    def beat(self) -> None:
        """Note that this worker looks for requests."""
        self.beats[self.loop.worker_id or 0] = time.monotonic()

    def health(self) -> bool:
        """If no worker hangs."""
        earliest: float = min(self.beats)
        return time.monotonic() - earliest <= self.patience

    def setup(self, device: str) -> None:
        """Load the classifier, in the worker's process."""
        # Ctrl-C is for the service's own process, which ends its workers once their requests are answered
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        configure_logging(logging.WARNING, stream=sys.stderr)
        # torch's threads within an operation would mostly wait for each other
        torch.set_num_threads(1)
        self.classifier = Classifier.load(self.answers.classifier).to(device)
        self.on_cpu = device == "cpu"
        self.columns = columns(self.classifier.task, self.answers.top_k, self.answers.rule)
        size = self.classifier.preprocessing.image_size
        # the first image takes longer
        self.classifier.predict([torch.zeros(3, size, size, dtype=torch.uint8)])
        self.beat()

    def decode_request(self, request: Annotated[list[Upload], Depends(read_uploads)]) -> list[Upload]:
        """Return the images, which have been read before the request is queued."""
        return request

    def predict(self, x: Sequence[list[Upload]]) -> list[list[Row]]:
        """Classify the images of several requests together; returns one row for each."""
        items = [upload for uploads in x for upload in uploads]
        opened = partial(Upload.open, decoding=self.classifier.decoding)
        # on a CPU each thread takes its part of the images
        parts = self.threads if self.on_cpu else 1
        size = min(_MAX_BATCH, -(-len(items) // parts))
        top_k, rule = self.answers.top_k, self.answers.rule
        found = self.classifier.predictions(items, opened, top_k, size, self.threads, rule=rule)
        rows = (to_row(self.classifier.task, upload.name, predicted, self.columns) for upload, predicted in found)
        return [list(islice(rows, len(uploads))) for uploads in x]

    def encode_response(self, output: list[Row]) -> Predictions:
        """Return the rows of a request, or its refusal if an image is unreadable, which must not fail its batch."""
        errors = [row.pop("error") for row in output]
        unreadable: Any = [JSONResponse({"detail": error}, 422) for error in errors if error is not None]
        return unreadable[0] if unreadable else Predictions(predictions=output)

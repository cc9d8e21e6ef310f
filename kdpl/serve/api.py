"""Images of a request, and the worker processes that classify them in batches."""

import os
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from multiprocessing import parent_process
from threading import Thread
from typing import Annotated, cast

import torch
from fastapi import Depends, File, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse
from litserve import LitAPI, configure_logging
from PIL import Image
from pydantic import BaseModel

from kdpl.classifier import Classifier, PredictOptions
from kdpl.classifier.bulk import columns, to_row
from kdpl.classifier.sources import MAX_UPLOAD_PIXELS
from kdpl.classifier.tables import Row
from kdpl.data.decoding import cores, open_image
from kdpl.errors import visible
from kdpl.tasks import DecisionRule

PATH = "/predict"

_MAX_BATCH = 64
_BATCH_SECONDS = 0.005
_FORMAT = (
    "send files in the field images of multipart/form-data, "
    "or one image as the body with its type, as image/jpeg"
)

# A file from a client: name, made visible, and content. Requests and responses use no class of this
# package, since the process of LitServe's queues would import torch to unpickle them.
Upload = tuple[str, bytes]


class Predictions(BaseModel):
    """Rows as in a table of the predict command, one for each image, in the order sent."""

    predictions: list[dict[str, str | float | None]]


async def read_uploads(
    request: Request,
    images: Annotated[list[UploadFile], File(description="image files")] = [],  # noqa: B006
) -> list[Upload]:
    """Read images from a request's form or body; an HTTPException if there is none or too many."""
    # a form, or one image as the body
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = [(visible(file.filename or "image"), await file.read()) for file in images]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        content = await request.body()
        uploads = [("body", content)] if content else []
    else:
        raise HTTPException(415, f"the Content-Type is {kind or 'missing'}: {_FORMAT}")

    # limits
    most = request.app.state.max_images
    if not uploads:
        raise HTTPException(400, f"there is no image in the request: {_FORMAT}")
    if len(uploads) > most:
        raise HTTPException(413, f"there are {len(uploads)} images, at most {most}: send fewer")
    return uploads


class ClassifierApi(LitAPI):  # type: ignore[misc]  # litserve has no types
    """Classifies the images of all waiting requests as the predict command does."""

    def __init__(
        self, folder: str, top_k: int = 1, rule: DecisionRule = DecisionRule(), workers: int = 1
    ) -> None:
        # without a timeout for batches, an idle worker of LitServe polls without a pause
        super().__init__(max_batch_size=_MAX_BATCH, batch_timeout=_BATCH_SECONDS, api_path=PATH)
        self.folder, self.top_k, self.rule = folder, top_k, rule
        self.threads = max(1, cores() // workers)

    def setup(self, device: str) -> None:
        """Load the classifier in the worker's process."""
        end_with_parent()
        # Ctrl-C is for the main process; it ends the workers once their requests are answered
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        configure_logging("warning", stream=sys.stderr)
        # threads within an operation would mostly wait for each other
        torch.set_num_threads(1)

        self.classifier = Classifier.load(self.folder).to(device)
        self.columns = columns(self.classifier.task, self.top_k, self.rule)
        # on a CPU, each thread takes a part of the images
        self.parts = self.threads if device == "cpu" else 1

        # warm up, since the first image takes longer
        size = self.classifier.preprocessing.image_size
        self.classifier.predict([torch.zeros(3, size, size, dtype=torch.uint8)])

    def decode_request(
        self, request: Annotated[list[Upload], Depends(read_uploads)]
    ) -> list[Upload]:
        """Return the images; they were read before the request was queued."""
        return request

    def predict(self, x: Sequence[list[Upload]]) -> list[list[Row]]:
        """Classify the images of several requests together; return one row for each."""
        # all requests as one sequence of images
        items = [upload for uploads in x for upload in uploads]
        size = min(_MAX_BATCH, -(-len(items) // self.parts))
        options = PredictOptions(self.top_k, size, self.threads, rule=self.rule)
        pairs = self.classifier.predictions(items, self.open, options)
        rows = (
            to_row(self.classifier.task, name, predicted, self.columns)
            for (name, _), predicted in pairs
        )
        # the rows of each request
        return [list(islice(rows, len(uploads))) for uploads in x]

    def open(self, upload: Upload) -> Image.Image:
        """Decode an image as RGB; DataError if it is unreadable or too large.

        The name is never used as a path.
        """
        name, content = upload
        return open_image(name, content, self.classifier.decoding, MAX_UPLOAD_PIXELS)

    def encode_response(self, output: list[Row]) -> Predictions:
        """Return the rows of a request, or a refusal if an image is unreadable."""
        errors = [error for row in output if (error := row.pop("error")) is not None]
        response = JSONResponse({"detail": errors[0]}, 422) if errors else {"predictions": output}
        # the annotation goes into the OpenAPI description
        return cast(Predictions, response)


def end_with_parent() -> None:
    """End this process when its parent ends, even if the parent was killed."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()

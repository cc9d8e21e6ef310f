"""The demo's page in gradio, and its server."""

import os
import sys
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from kdpl.class_vectors import NameEncoder
from kdpl.classifier import Classifier
from kdpl.classifier.sources import MAX_UPLOAD_PIXELS
from kdpl.data.decoding import open_image
from kdpl.data.sampling import spread
from kdpl.data.sources import find_files
from kdpl.errors import ConfigError, KdplError, reason, visible
from kdpl.report.reasons.pictures import overlay
from kdpl.runtime.class_names import composed

if TYPE_CHECKING:
    import gradio

MAX_ADDED = 50
"""Most classes that a visitor can add."""

_EXAMPLES, _MAX_UPLOAD, _MAX_WAITING, _ENCODED = 12, "20mb", 32, 32
# seconds between deletions of uploaded files, and their largest age
_CLEAN_EVERY, _KEPT = 60, 300


class Demo:
    """A classifier and its teacher's encoder, so that visitors can add classes."""

    def __init__(self, classifier: Classifier, encoder: NameEncoder | None, top_k: int) -> None:
        if encoder is not None:
            classifier.vectors.require_teacher(encoder.prompts)
        self.classifier, self.encoder, self.top_k = classifier, encoder, top_k
        # a visitor keeps the names and changes the images
        self._encode = lru_cache(_ENCODED)(encoder.encode) if encoder is not None else None

    def classify(self, path: str, name: str, added: str = "") -> dict[str, float] | str:
        """Return the probabilities of an image's most probable classes, or a text without any."""
        classifier, image = self.open(path, name, added)
        (top,) = classifier.predict([image], self.top_k, workers=1)
        probabilities = {visible(str(item.class_name)): item.probability for item in top}
        return probabilities or "none of the classes"

    def open(self, path: str, name: str, added: str) -> tuple[Classifier, Image.Image]:
        """Return the classifier with the added classes, and the image; see ``classify``."""
        # add the classes by the names of the visitor, each once
        classifier = self.classifier
        names = dict.fromkeys(composed(" ".join(name.split())) for name in added.split(","))
        names.pop("", None)
        if names:
            if self._encode is None:
                raise ConfigError("classes cannot be added here: start the demo with --teacher RUN")
            if len(names) > MAX_ADDED:
                raise ConfigError(
                    f"there are {len(names)} further classes, at most {MAX_ADDED}: remove some"
                )
            classifier = classifier.add_classes(self._encode(tuple(names)))
        content = Path(path).read_bytes()
        return classifier, open_image(name, content, classifier.decoding, MAX_UPLOAD_PIXELS)


def find_examples(arguments: Sequence[str]) -> list[str]:
    """Choose up to twelve images, evenly spread over files and folders; DataError if unreadable."""
    paths = spread(list(find_files(arguments)), _EXAMPLES)
    for path in paths:
        open_image(path)
    return paths


def build(demo: Demo, examples: Sequence[str]) -> "gradio.Blocks":
    """Lay out the page, with image files to choose from as examples."""
    import gradio as gr

    # what happens on a change of image or classes
    names = demo.classifier.class_names

    def on_change(file: dict[str, Any] | None, added: str | None) -> dict[str, float] | str | None:
        if file is None:
            return None
        name = file.get("orig_name") or Path(file["path"]).name
        try:
            return demo.classify(file["path"], name, added or "")
        except KdplError as error:
            gr.Warning(escape(str(error)))
            return None

    def draw_heat_map(file: dict[str, Any] | None, added: str | None) -> str:
        png = BytesIO()
        # errors are shown with the prediction
        with suppress(KdplError):
            if file is not None:
                overlay(*demo.open(file["path"], "", added or "")).save(png, "png")
        data = b64encode(png.getvalue()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="" style="width: 100%">'
        return f"Heat map<br>{image}" if data else ""

    # the page, top to bottom
    note = f"The prediction is always one of {len(names)} classes, even if none of them fits."
    if demo.classifier.task.per_class:
        note = f"An image may show any of {len(names)} classes, or none of them."
    page: gr.Blocks
    with gr.Blocks(
        title="kdpl demo", analytics_enabled=False, delete_cache=(_CLEAN_EVERY, _KEPT)
    ) as page:
        gr.Markdown(
            f"# What is in this image?\n{note} Images are sent only to the machine that "
            "serves this page, which deletes them within ten minutes."
        )
        with gr.Row():
            image = gr.Image(
                label="Image",
                sources=["upload", "clipboard"],
                type="filepath",
                height=320,
                elem_id="image",
            )
            label = gr.Label(label="Prediction", num_top_classes=demo.top_k, elem_id="predictions")
            # HTML, since gr.Image offers to publish what it shows
            heat_map = gr.HTML(elem_id="heat-map")
        added = gr.Textbox(
            label="Add classes",
            info="Type names as in a sentence, separated by commas. Only you see them.",
            max_lines=1,
            submit_btn="Add",
            visible=demo.encoder is not None,
            elem_id="names",
        )
        if examples:
            gr.Examples(
                [[path] for path in examples],
                [image],
                label="Or choose an example",
                examples_per_page=_EXAMPLES,
            )
        with gr.Accordion(f"All {len(names)} classes", open=False):
            gr.Textbox(", ".join(map(visible, names)), show_label=False, container=False)
        # without preprocessing, to decode the uploaded file as predict does
        for react, shown in ((on_change, label), (draw_heat_map, heat_map)):
            gr.on([image.change, added.submit], react, [image, added], shown, preprocess=False)
    page.queue(max_size=_MAX_WAITING, api_open=False)
    return page


def launch(page: "gradio.Blocks", host: str, port: int | None, show: bool) -> None:
    """Start to serve the page, and open it in the browser if there is a screen."""
    # without a screen, Python would start a browser in the terminal
    has_display = not {"DISPLAY", "WAYLAND_DISPLAY"}.isdisjoint(os.environ)
    screen = sys.platform in ("darwin", "win32") or has_display
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=show and screen,
            max_file_size=_MAX_UPLOAD,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            enable_monitoring=False,
        )
    except OSError as error:
        subject = f"the demo cannot listen on {host} ({reason(error)})"
        raise ConfigError(f"{subject}: give another --host or --port") from error

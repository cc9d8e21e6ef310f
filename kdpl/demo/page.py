"""The demo's page in gradio, its texts as HTML, and its server."""

import os
import socket
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdpl.demo.visit import Demo, Result, Visit
from kdpl.errors import ConfigError, KdplError, reason
from kdpl.runtime.class_names import shorten

if TYPE_CHECKING:
    import gradio

_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN_CLASSES, _NOTE_LENGTH, _MAX_UPLOAD, _MAX_WAITING = 12, 400, "20mb", 32
# seconds between looks at uploaded files, and their largest age
_CLEAN_EVERY, _KEPT = 60, 300

_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_EMPTY = "Predictions appear here."


def head(demo: Demo) -> str:
    """Return the heading: the classifier and its classes. Names are escaped here and below."""
    classifier = demo.classifier
    names, teacher = [shorten(name) for name in classifier.class_names], classifier.vectors.clip.model
    return _render("head", names=names, shown=_SHOWN_CLASSES, teacher=teacher, student=classifier.clip.model)


def bars(visit: Visit, result: Result) -> str:
    """Return the predictions as bars."""
    rows = [
        {
            "name": shorten(str(each.class_name)),
            "added": each.class_name in visit.added,
            "percent": "< 0.1 %" if each.probability < 0.0005 else f"{100 * each.probability:.1f} %",
            "width": f"{100 * each.probability:.2f}",
        }
        for each in result.predictions
    ]
    network, reading = (f"{1000 * s:.{1 if s < 0.1 else 0}f} ms" for s in (result.seconds, visit.seconds))
    return _render("predictions", rows=rows, network=network, reading=reading)


def note(text: str, is_error: bool = False) -> str:
    """Return a sentence in a box."""
    return _render("note", text=shorten(text, _NOTE_LENGTH), is_error=is_error)


def _render(name: str, **values: Any) -> str:
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(f"{name}.html.jinja").render(values)


def _predictions(demo: Demo, visit: Visit) -> str:
    result = demo.predict(visit)
    return bars(visit, result) if result is not None else note(_EMPTY)


def _error(error: KdplError) -> str:
    sentence = str(error).rstrip(".")
    return note(f"{sentence[0].upper()}{sentence[1:]}.", is_error=True)


def build(demo: Demo, examples: Sequence[str]) -> "gradio.Blocks":
    """Lay out the page, with image files to choose from as examples."""
    import gradio as gr

    def on_image(file: dict[str, Any] | None, visit: Visit) -> tuple[Visit, str]:
        cleared = Visit(added=visit.added)
        if file is None:
            return cleared, note(_EMPTY)
        try:
            visit = demo.look(visit, file["path"], file.get("orig_name") or Path(file["path"]).name)
        except KdplError as error:
            return cleared, _error(error)
        return visit, _predictions(demo, visit)

    with gr.Blocks(title="kdpl demo", analytics_enabled=False, delete_cache=(_CLEAN_EVERY, _KEPT)) as page:
        visit = gr.State(Visit())
        gr.HTML(head(demo))
        with gr.Row(equal_height=False):
            with gr.Column():
                image = gr.Image(
                    label="Image", sources=["upload", "clipboard"], type="filepath", height=320, elem_id="image"
                )
            with gr.Column():
                shown = gr.HTML(note(_EMPTY), elem_id="predictions")
        if examples:
            gr.Examples([[path] for path in examples], [image], label="Or choose an example", examples_per_page=12)
        image.change(on_image, [image, visit], [visit, shown], preprocess=False, **_EVENT)
        if demo.encoder is not None:
            _build_classes(demo, visit, shown)
    page.queue(max_size=_MAX_WAITING, api_open=False)
    built: gr.Blocks = page
    return built


def _build_classes(demo: Demo, visit: "gradio.State", shown: "gradio.HTML") -> None:
    """Lay out the field for further class names."""
    import gradio as gr

    name = gr.Textbox(
        label="Add a class",
        info="Type its name as in a sentence. Only you see it, until you leave the page.",
        placeholder="for example: hermit crab",
        max_lines=1,
        submit_btn="Add",
        elem_id="name",
    )
    message = gr.HTML(visible=False, elem_id="message")
    added = gr.CheckboxGroup([], label="Your classes: untick one to remove it", visible=False, elem_id="added")

    def boxes(visit: Visit) -> Any:
        names = list(visit.added)
        return gr.update(choices=names, value=names, visible=bool(names))

    def on_add(typed: str | None, visit: Visit) -> tuple[Any, ...]:
        try:
            visit = demo.add(visit, typed or "")
        except KdplError as error:
            return visit, gr.skip(), gr.skip(), gr.skip(), gr.update(value=_error(error), visible=True)
        return visit, _predictions(demo, visit), "", boxes(visit), gr.update(value="", visible=False)

    def on_change(names: list[str], visit: Visit) -> tuple[Any, ...]:
        visit = demo.keep(visit, names)
        return visit, _predictions(demo, visit), boxes(visit), gr.update(value="", visible=False)

    name.submit(on_add, [name, visit], [visit, shown, name, added, message], **_EVENT)
    added.input(on_change, [added, visit], [visit, shown, added, message], **_EVENT)


def serve(page: "gradio.Blocks", host: str, port: int | None, show: bool) -> None:
    """Serve the page until Ctrl-C, and open it in the browser if there is a screen.

    Port None is the first free one from 7860 on, 0 any free one; a ConfigError says if there is none.
    """
    import gradio as gr

    try:
        if port == 0:
            with socket.create_server((host, 0)) as free:
                port = int(free.getsockname()[1])
        never = ("share", "run_history", "enable_monitoring", "ssr_mode", "mcp_server", "pwa")
        options: dict[str, Any] = {"quiet": True, "prevent_thread_lock": True, **dict.fromkeys(never, False)}
        theme = gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate")
        options |= {"theme": theme, "css_paths": _TEMPLATES / "style.css", "footer_links": []}
        page.launch(server_name=host, server_port=port, max_file_size=_MAX_UPLOAD, **options)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{page.server_port}"  # noqa: S104
        print(f"demo: {url} (Ctrl-C ends it)", flush=True)
        if host != "127.0.0.1":
            print("everybody who can reach this machine over the network can use the page", file=sys.stderr)
        # without a screen, Python would start a browser in the terminal
        if show and (sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
            webbrowser.open(url)
        while True:
            time.sleep(3600)
    except OSError as error:
        raise ConfigError(
            f"the demo cannot listen on {host} ({reason(error)}): give another --host or --port, or --port 0 for any"
        ) from error
    except KeyboardInterrupt:
        print("demo ended")
    finally:
        if page.is_running:
            # an open page in a browser listens for events, and would be waited for
            page.server.config.timeout_graceful_shutdown = 1
        page.close(verbose=False)

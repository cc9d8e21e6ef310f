"""The page, in gradio: its parts, what happens on each event, and the server."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpl.deploy.demo import texts
from kdpl.deploy.demo.address import ANYWHERE, show_page
from kdpl.deploy.demo.visit import Demo, Visit
from kdpl.errors import KdplError

if TYPE_CHECKING:
    import gradio

MAX_UPLOAD = "20mb"

# how often uploaded files are looked at, and how old they become, seconds
_CLEAN_EVERY, _KEPT = 60, 300
_WAITING = 32

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_EMPTY = "The answers will be here."


def build(demo: Demo, examples: Sequence[str]) -> "gradio.Blocks":
    """Lay the page out.

    Args:
        demo: What it shows.
        examples: Image files to pick from.
    """
    import gradio as gr

    with gr.Blocks(title="kdpl demo", analytics_enabled=False, delete_cache=(_CLEAN_EVERY, _KEPT)) as page:
        visit = gr.State(Visit())
        gr.HTML(texts.head(demo))
        with gr.Row(equal_height=False):
            with gr.Column():
                image = gr.Image(
                    label="Image", sources=["upload", "clipboard"], type="filepath", height=320, elem_id="image"
                )
            with gr.Column():
                answers = gr.HTML(texts.note(_EMPTY), elem_id="answers")
        if examples:
            gr.Examples([[path] for path in examples], [image], label="Or pick an example", examples_per_page=12)
        image.change(_on_image(demo), [image, visit], [visit, answers], preprocess=False, **_PRIVATE)
        if demo.encoder is not None:
            _build_classes(demo, visit, answers)
    page.queue(max_size=_WAITING, api_open=False)
    built: gr.Blocks = page
    return built


def _build_classes(demo: Demo, visit: "gradio.State", answers: "gradio.HTML") -> None:
    """Lay out the field for further class names."""
    import gradio as gr

    name = gr.Textbox(
        label="A class more",
        info="Type its name, as you would write it in a sentence. It is there for you alone, until you leave the page.",
        placeholder="for example: hermit crab",
        max_lines=1,
        submit_btn="Add",
        elem_id="name",
    )
    message = gr.HTML(visible=False, elem_id="message")
    added = gr.CheckboxGroup([], label="Your classes: untick one to remove it", visible=False, elem_id="added")

    def shown(visit: Visit) -> Any:  # noqa: ANN401
        names = list(visit.added)
        return gr.update(choices=names, value=names, visible=bool(names))

    def on_add(typed: str | None, visit: Visit) -> tuple[Any, ...]:
        try:
            visit = demo.add(visit, typed or "")
        except KdplError as error:
            return (
                visit,
                gr.skip(),
                gr.skip(),
                gr.skip(),
                gr.update(value=texts.note(_sentence(error), True), visible=True),
            )
        return visit, _answers(demo, visit), "", shown(visit), gr.update(value="", visible=False)

    def on_change(names: list[str], visit: Visit) -> tuple[Any, ...]:
        visit = demo.keep(visit, names)
        return visit, _answers(demo, visit), shown(visit), gr.update(value="", visible=False)

    outputs = [visit, answers, name, added, message]
    name.submit(on_add, [name, visit], outputs, **_PRIVATE)
    added.input(on_change, [added, visit], [visit, answers, added, message], **_PRIVATE)


def _on_image(demo: Demo) -> Callable[[dict[str, Any] | None, Visit], tuple[Visit, str]]:
    def on_image(file: dict[str, Any] | None, visit: Visit) -> tuple[Visit, str]:
        if file is None:
            visit = demo.clear(visit)
            return visit, _answers(demo, visit)
        try:
            visit = demo.look(visit, file["path"], file.get("orig_name") or Path(file["path"]).name)
        except KdplError as error:
            return demo.clear(visit), texts.note(_sentence(error), fault=True)
        return visit, _answers(demo, visit)

    return on_image


def _answers(demo: Demo, visit: Visit) -> str:
    given = demo.answer(visit)
    return texts.answers(visit, given) if given is not None else texts.note(_EMPTY)


def _sentence(error: KdplError) -> str:
    sentence = str(error).rstrip(".")
    return f"{sentence[0].upper()}{sentence[1:]}."


def serve(page: "gradio.Blocks", host: str, port: int, show: bool) -> None:
    """Serve the page until Ctrl-C, or until the process is asked to end.

    Args:
        page: The page.
        host: Address to listen on.
        port: A port of it that is free.
        show: Open it in the browser.
    """
    import gradio as gr

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate"),
            css_paths=texts.STYLE,
        )
        url = f"http://{'127.0.0.1' if host == ANYWHERE else host}:{port}"
        print(f"demo: {url} (Ctrl-C ends it)", flush=True)
        if host != "127.0.0.1":
            print("whoever can reach this machine over the network can use the page too", file=sys.stderr)
        if show:
            show_page(url)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("demo ended")
    finally:
        if page.is_running:
            # a page that is still open in a browser listens for events, and would be waited for
            page.server.config.timeout_graceful_shutdown = 1
        page.close(verbose=False)

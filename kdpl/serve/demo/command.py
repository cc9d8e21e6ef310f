"""``python -m kdpl demo CLASSIFIER``: try a finished classifier in the browser."""

import os
import tempfile
from pathlib import Path

from jsonargparse.typing import PositiveInt

from kdpl.cli.arguments import require_file
from kdpl.runtime.optional import optional
from kdpl.runtime.run_folder import require_classifier


def demo(
    classifier: str,
    *,
    teacher: str | None = None,
    add_classes: str | None = None,
    examples: list[str] = [],  # noqa: B006
    top_k: PositiveInt = 5,
    host: str = "127.0.0.1",
    port: PositiveInt | None = None,
    no_browser: bool = False,
) -> int:
    """Try a classifier in the browser, on a page that classifies the images dropped on it.

    This machine serves the page. It needs no network, and keeps no image.

    Args:
        classifier: classifier folder of a student's run
        teacher: run folder of its teacher, so that visitors can add classes by name
        add_classes: class vectors of further classes, written by the class-vectors command
        examples: image files and folders to choose examples from
        top_k: classes for each image
        host: address to listen on; 0.0.0.0 opens the page to the network
        port: port to listen on, by default the first free one from 7860
        no_browser: print the address without opening a browser
    """
    require_classifier(Path(classifier))
    require_file("--add-classes", add_classes)
    # a temporary folder for uploads
    with tempfile.TemporaryDirectory(prefix="kdpl-demo-", ignore_cleanup_errors=True) as uploads:
        # no proxy for addresses of this machine
        no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        # gradio reads these when it is imported
        os.environ.update(
            GRADIO_TEMP_DIR=uploads,
            GRADIO_ANALYTICS_ENABLED="False",
            GRADIO_RUN_HISTORY="False",  # no history of images in the browser
            no_proxy=",".join(filter(None, [no_proxy, "localhost", "127.0.0.1", host])),
        )
        optional("gradio", "the demo", "demo")
        from kdpl.class_vectors import NameEncoder
        from kdpl.classifier.bulk import load_classifier
        from kdpl.runtime.messages import quiet_libraries
        from kdpl.serve.demo.page import Demo, build, find_examples, serve

        # load the classifier and its teacher's encoder, and serve the page
        quiet_libraries()
        encoder = NameEncoder.load(teacher) if teacher is not None else None
        loaded = Demo(load_classifier(classifier, add_classes), encoder, top_k)
        serve(build(loaded, find_examples(examples)), host, port, show=not no_browser)
    return 0

"""The commands ``serve``, for other programs, and ``demo``, for people with a browser."""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.cli.arguments import Rule, require_file
from kdpl.runtime.optional import optional
from kdpl.runtime.run_folder import require_classifier


def serve(
    classifier: str,
    *,
    top_k: PositiveInt = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: PositiveInt = 1,
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1",  # noqa: S104
    port: NonNegativeInt = 8000,
    max_megabytes: PositiveInt = 20,
    max_images: PositiveInt = 32,
    max_waiting: PositiveInt = 64,
    timeout: PositiveInt = 30,
    rule: Rule,
) -> int:
    """Classify the images that other programs send over HTTP, until Ctrl-C or SIGTERM.

    POST /predict takes files in the field images of a form, or one image as the body. It returns
    the rows of predict's tables as JSON. /health says if the service is ready, and /info what it
    serves.

    Args:
        classifier: classifier folder of a student's run
        top_k: classes for each image
        rule: options that plugins add, such as rejection
        device: auto is a GPU if there is one
        workers: processes on each device that classify; each loads the classifier
        host: address to listen on; 0.0.0.0, or :: for IPv6, opens the service to the network
        port: port to listen on, from 1024; 0 is any
        max_megabytes: largest body of a request, in MB
        max_images: most images in a request
        max_waiting: most requests at once; further ones are refused with status 503
        timeout: seconds until a request is answered or refused, including its upload
    """
    # check the options and the packages before torch is imported
    require_classifier(Path(classifier))
    for package in ("litserve", "python_multipart"):
        optional(package, "the service", "serve")
    from kdpl.classifier.bulk import choose_device, load_classifier
    from kdpl.serve.api import ClassifierApi
    from kdpl.serve.server import Limits, build, free_port
    from kdpl.serve.server import serve as run

    # check the port before the classifier is loaded
    port = free_port(host, port)
    worker_device = choose_device(device)
    # on the CPU, for names and rule alone: each worker loads the classifier onto its device
    loaded = load_classifier(classifier, None)
    api = ClassifierApi(
        classifier, min(top_k, len(loaded.class_names)), rule.of(loaded, top_k), workers
    )
    limits = Limits(max_megabytes * 2**20, max_images, max_waiting, timeout)
    # announce the address once it can be asked, and serve
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    ready = partial(_announce, f"service: {url} is ready", host, "service")
    run(build(api, loaded, worker_device, workers, limits, ready), host, port)
    return 0


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
        from kdpl.serve.demo import Demo, build, find_examples, launch

        # load the classifier and its teacher's encoder, and serve the page
        quiet_libraries()
        encoder = NameEncoder.load(teacher) if teacher is not None else None
        loaded = Demo(load_classifier(classifier, add_classes), encoder, top_k)
        page = build(loaded, find_examples(examples))
        launch(page, host, port, show=not no_browser)
        _announce(f"demo: {page.local_url}", host, "page")
        page.block_thread()
    return 0


def _announce(address: str, host: str, what: str) -> None:
    print(f"{address} (Ctrl-C ends it)", flush=True)
    if host != "127.0.0.1":
        warning = f"everybody who can reach this machine over the network can use the {what}"
        print(warning, file=sys.stderr)

"""The command ``serve``."""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.cli.arguments import Rule
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
        rule: options that decide what is predicted, such as rejection
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
    ready = partial(_announce, url, host)
    run(build(api, loaded, worker_device, workers, limits, ready), host, port)
    return 0


def _announce(url: str, host: str) -> None:
    print(f"service: {url} is ready (Ctrl-C ends it)", flush=True)
    if host != "127.0.0.1":
        warning = "everybody who can reach this machine over the network can use the service"
        print(warning, file=sys.stderr)

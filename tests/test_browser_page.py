"""The page in examples/browser/, in a real browser."""

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, NEEDED, browser
from PIL import Image
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier, Decoding

PAGE = Path(__file__).parents[1] / "examples" / "browser" / "index.html"
RUNTIME = "onnxruntime-web@1.31"
IMAGES = 100

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NEEDED)]


@pytest.fixture(scope="module")
def site(classifier, tmp_path_factory):
    """The classifier, a folder with the page and what belongs beside it as docs/export.md says, and its address."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("site")
    npm = shutil.which("npm")
    install = [npm or "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", RUNTIME]
    if npm is None or subprocess.run(install, cwd=folder, timeout=300, check=False).returncode:
        pytest.skip(f"needs npm and {RUNTIME}, which npm does not get here")
    shutil.copy(PAGE, folder)
    loaded = Classifier.load(classifier)
    loaded.decoding = Decoding()  # of a user's images
    loaded.save(saved := tmp_path_factory.mktemp("classifier") / "saved")
    shutil.copy(saved / "classifier.json", folder)
    file = folder / "classifier.onnx"
    options = ["--format=onnx", "--preprocess=inside", f"--out={file}"]
    assert main(["export", str(saved), *options]) == 0

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield loaded, folder, f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


def images_for(folder):
    """Write digits of many sizes, some transparent, turned by their EXIF or compressed."""
    draw, digits = np.random.default_rng(1), load_digits().images
    folder.mkdir()
    for number in range(IMAGES):
        size = tuple(draw.integers(8, 300, 2).tolist())
        image = Image.fromarray((digits[number] * 15).astype("uint8")).resize(size).convert("RGB")
        if number % 4 == 1:
            image.putalpha(int(draw.integers(0, 256)))
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 4 == 2 else 1
        suffix = "jpg" if number % 4 == 2 else "webp" if number % 4 == 3 else "png"
        image.save(folder / f"{number}.{suffix}", exif=exif, lossless=True, quality=95)
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def test_the_page_predicts_as_predict_does(site, tmp_path):
    loaded, folder, address = site
    files = images_for(folder / "images")
    with browser(tmp_path / "profile") as tab:
        tab.open(address)
        tab.wait("typeof classify == 'function'")
        for file in files:
            path = json.dumps(f"images/{file.name}")
            found = tab.run(f"fetch({path}).then(r => r.blob()).then(classify)")
            (predicted,) = loaded.predict([str(file)], top_k=len(loaded.class_names))
            expected = {p.class_name: p.probability for p in predicted}
            expected = [expected[name] for name in loaded.class_names]
            assert found == pytest.approx(expected, abs=0.01), file.name
            assert np.argmax(found) == np.argmax(expected)

        # as a visitor sees it
        tab.upload("input", files[0])
        tab.wait("document.querySelectorAll('td').length == 10")
        (top,) = loaded.predict([str(files[0])])[0]
        assert tab.text("td") == top.class_name
        (folder / "no.png").write_text("no image")
        tab.upload("input", folder / "no.png")
        tab.wait("document.querySelector('[role=status]').innerText.includes('cannot be')")
        assert {
            url for url in tab.requested if not url.startswith(("http://127.0.0.1", "blob:"))
        } <= {"about:blank"}

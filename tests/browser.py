"""A real browser for tests: chromium without a window, driven over the pipe of its developer tools."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

from PIL import Image

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
NEEDED = "needs chromium (Debian: apt-get install chromium)"

_PATIENCE_SECONDS = 60


class Tab:
    """A page in a browser: ``requested`` are the addresses that it asked for so far."""

    def __init__(self, send_to, read_from):
        self._to, self._from = send_to, read_from
        self._buffer, self._number, self._session = b"", 0, None
        self.requested = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "DOM", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Call a method of the developer tools."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE_SECONDS)
            assert ready, "the browser says nothing"
            more = os.read(self._from, 1 << 20)
            assert more, "the browser is gone"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(message)
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
        return event

    def look(self, width=1200, height=900, dark=False):
        """Set the size of the window and the preferred colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """Return the value of a script."""
        options = {"returnByValue": True, "awaitPromise": True}
        done = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script):
        """Wait until a script's value is true, and return it."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script}: the page shows {self.text('body')}"
            time.sleep(0.05)
        return value

    def text(self, selector):
        """Return the visible text of an element, empty without it."""
        return self.run(
            f"(document.querySelector({json.dumps(selector)}) || {{innerText: ''}}).innerText"
        )

    def upload(self, selector, path):
        """Choose a file in a file field."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path):
        """Write a picture of the window; returns it."""
        content = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(content))
        with Image.open(path) as picture:
            return picture.convert("RGB")


@contextmanager
def browser(folder, *options):
    """Start a browser with one tab, which keeps its files in a folder."""
    (they_read, we_write), (we_read, they_write) = os.pipe(), os.pipe()
    # the browser reads from 3 and writes to 4
    start = f'exec "$0" "$@" 3<&{they_read} 4>&{they_write} >/dev/null 2>&1'
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    fixed += ["--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    command = ["bash", "-c", start, CHROMIUM, *fixed, *options, "about:blank"]
    process = subprocess.Popen(command, pass_fds=(they_read, they_write))
    os.close(they_read)
    os.close(they_write)
    try:
        yield Tab(we_write, we_read)
    finally:
        os.close(we_write)
        os.close(we_read)
        process.terminate()
        process.wait(timeout=30)

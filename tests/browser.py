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
from runs import start_process

from kdpl.data.readers.digits import open_digit

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
NEEDED = "needs chromium (Debian: apt-get install chromium)"

_PATIENCE_SECONDS = 60


class Tab:
    """A page in a browser: ``requested`` are the addresses that it asked for so far, ``complaints`` its errors."""

    def __init__(self, send_to, read_from):
        self._to, self._from = send_to, read_from
        self._buffer, self._number, self._session = b"", 0, None
        self.requested, self.complaints = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "DOM", "Network", "Runtime", "Log"):
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
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
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

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def write(self, selector, text):
        """Replace the text of a field."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.run(f"(field => {{field.focus(); field.select()}})({field})")
        self.call("Input.insertText", text=text)

    def add_classes(self, names):
        """Add classes in the demo, separated by commas."""
        self.wait("!!document.querySelector('#names input')")
        self.write("#names input", names)
        self.click("#names button")

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
def demo(folder, classifier, teacher, digits, *more):
    """Serve the demo with digits, by the names of their files, as examples; yields its process and address."""
    (folder / "examples").mkdir()
    for name, source in digits.items():
        open_digit(source).save(folder / "examples" / f"{name}.png")
    options = [f"--teacher={teacher}", f"--examples={folder / 'examples'}", "--no-browser", *more]
    args = ["demo", str(classifier), *options]
    process = start_process(args, stdout=subprocess.PIPE)
    try:
        line = process.stdout.readline()
        assert line.startswith("demo: http://127.0.0.1:"), process.stderr.read()
        yield process, line.split()[1]
    finally:
        process.kill()
        process.communicate()


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

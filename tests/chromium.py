"""Chromium without a screen, driven over a pipe by its DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
import time

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """One tab.

    Attributes:
        requested: addresses that the page asked for.
        complaints: what the console and the page's own errors say.
    """

    def __init__(self, profile):
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()

        def numbered():  # Chromium reads 3 and writes 4
            os.dup2(to_read, 13), os.dup2(to_write, 14), os.dup2(13, 3), os.dup2(14, 4)

        self._process = subprocess.Popen(
            [PATH, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=numbered,
            pass_fds=(3, 4),
        )  # fmt: skip
        os.close(to_read), os.close(to_write)
        self._file = os.fdopen(self._in, "rb")
        self._numbers, self._session = itertools.count(1), None
        self._rest = b""
        self.requested, self.complaints = [], []
        (tab,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """A call of the protocol; what it answers."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]

    def _next(self):
        while b"\0" not in self._rest:
            more = os.read(self._in, 2**20)
            if not more:
                raise RuntimeError("Chromium is gone")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        said = json.loads(text)
        method, params = said.get("method"), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        return said

    def run(self, script):
        """The value of an expression."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, condition, seconds=30):
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > until:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def open(self, address, *, width=1400, height=900, scheme="light"):
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", features=[feature])
        self.requested.clear()
        self.complaints.clear()
        self("Page.navigate", url=address)
        self.wait('document.readyState === "complete" && location.href !== "about:blank"')

    def choose(self, selector, file):
        """A file in an <input type=file>, as if it were chosen."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, file, *, x, y):
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key):
        number = {"Tab": 9, " ": 32, "ArrowRight": 39}[key]
        text = {"text": key} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=number, **text)
            text = {}

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        self._file.close()
        os.close(self._out)

"""Headless Chromium, controlled over a pipe by its DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """A browser with one tab.

    Args:
        profile: an empty folder for the profile of the user.

    Attributes:
        requests: addresses that the page requested.
        console_lines: messages of the console and uncaught errors of the page.
    """

    def __init__(self, profile: Path):
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()

        def assign_descriptors() -> None:  # Chromium reads 3 and writes 4
            os.dup2(to_read, 13), os.dup2(to_write, 14), os.dup2(13, 3), os.dup2(14, 4)

        self._process = subprocess.Popen(
            [PATH, *QUIET, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=assign_descriptors,
            pass_fds=(3, 4),
        )  # fmt: skip
        os.close(to_read), os.close(to_write)
        self._file = os.fdopen(self._in, "rb")
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._rest = b""
        self.requests: list[str] = []
        self.console_lines: list[str] = []
        (tab,) = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        """Read one message; events of the page are recorded."""
        while b"\0" not in self._rest:
            received = os.read(self._in, 2**20)
            if not received:
                raise RuntimeError("Chromium has ended")
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console_lines.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.console_lines.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.console_lines.append(params["entry"]["text"])
        return message

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def open(
        self, address: str, *, width: int = 1400, height: int = 900, scheme: str = "light"
    ) -> None:
        """Load a page in a window of this size (pixels) and color scheme, and wait for it."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self("Emulation.setEmulatedMedia", features=[feature])
        self.requests.clear()
        self.console_lines.clear()
        self("Page.navigate", url=address)
        self.wait('document.readyState === "complete" && location.href !== "about:blank"')

    def choose(self, selector: str, file: Path) -> None:
        """Select a file in an <input type=file>."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, file: Path, *, x: float, y: float) -> None:
        """Drag a file to a point of the page (pixels) and drop it."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str) -> None:
        """Press a key: `Tab`, a space or `ArrowRight`."""
        number = {"Tab": 9, " ": 32, "ArrowRight": 39}[key]
        text = {"text": key} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=number, **text)
            text = {}

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(20)
        self._file.close()
        os.close(self._out)

"""A headless Chromium that tests drive through its DevTools protocol over a pipe: no package but the standard library.

Enters: pages on this disk.  Leaves: what a script finds in them, what they said on the console, and what they fetched.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
ANSWER_S = 120.0  # a browser that is silent for so long hangs: the slowest start seen on two busy cores took 7 s
COME_TRUE_S = 30.0  # what a click sets off takes milliseconds

_ON_3_AND_4 = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(reads, 3), os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""  # the protocol's pipe has fixed numbers, which may be taken in this process

_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Home": 36,
         "End": 35, "Tab": 9, "c": 67, "o": 79}  # fmt: skip


class Chromium:
    """One browser with one tab; use it as a context. Skips the test where no Chromium is installed."""

    def __init__(self, profile: Path) -> None:
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"needs a Chromium: none of {', '.join(NAMES)} is on the PATH")
        self._command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._data, self._last = b"", 0
        self.events: list[dict] = []

    def __enter__(self) -> Chromium:
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        shim = [sys.executable, "-c", _ON_3_AND_4, str(reads), str(writes), *self._command]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(shim, pass_fds=(reads, writes), stdout=quiet, stderr=quiet)
        os.close(reads)
        os.close(writes)
        self._session = ""
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._session = ""
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters) -> dict:
        """A command of the protocol and its result; events that come meanwhile are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, *, width: int = 1400, height: int = 1000) -> None:
        """Load a page into a window of that size, CSS px; what was said and fetched before is forgotten."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def look(self, script: str) -> object:
        """The value of an expression in the page, a promise's once it is kept; it must be a JSON value."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + COME_TRUE_S
        while not self.look(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key down and up, as a keyboard sends it to what has the focus."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        if key == "Enter":
            about["text"] = "\r"
        elif len(key) == 1:
            about |= {"code": f"Key{key.upper()}", "text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """The mouse on the middle of an element, after the page was scrolled to it."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.look(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.look(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({found}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[str]:
        """Errors and warnings that the open page has caused: exceptions, console, and what its policy refused."""
        found = []
        for event in self.events:
            about = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(about["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
        return found

    def fetched(self) -> list[str]:
        """What the open page asked for, but itself and the images inside it."""
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [a["request"]["url"] for a in asked if a["type"] != "Document" and a["request"]["url"][:5] != "data:"]

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, its whole height or the window."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _receive(self) -> dict:
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._in], [], [], ANSWER_S)
            if not ready:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise TimeoutError("Chromium has ended")
            self._data += piece
        message, _, self._data = self._data.partition(b"\0")
        return json.loads(message)

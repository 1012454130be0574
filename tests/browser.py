"""A browser without a window, driven over the DevTools protocol by a pipe: nothing beside the standard library.

    with browser.Browser(program) as chromium:
        page = chromium.open("file:///page.html", width=360)
        page.run("document.title")
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


def program() -> str | None:
    """Return the path of a Chromium that is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def _moved(fd: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return moved


class Browser:
    """One process; every page that is opened is a tab of it. No name of a host is resolved."""

    def __init__(self, path: str, patience: float = 60) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.patience, self.number, self.buffer = patience, 0, b""
        self.events: list[dict[str, Any]] = []
        # The browser reads its commands from 3 and answers on 4; ours are moved out of the way of these two.
        (read, self._out), (self._in, write) = (tuple(map(_moved, os.pipe())) for _ in range(2))

        def connect() -> None:
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking",
             f"--user-data-dir={self.folder.name}", "about:blank"],
            preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.ask("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        os.close(self._out)
        os.close(self._in)
        self.folder.cleanup()

    def ask(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """Send a command and return its answer; what comes in between is kept as an event."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": values} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + self.patience)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def wait(self, method: str, session: str) -> None:
        """Wait for an event of a tab."""
        end = time.monotonic() + self.patience
        while not any(e["method"] == method and e.get("sessionId") == session for e in self.events):
            self._next(end)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            part = os.read(self._in, 2**20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> Page:
        """Open a tab of this size on a page, and wait until it is loaded and its formulas are drawn."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable", session)
        self.ask("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1,
                 mobile=False)
        self.ask("Emulation.setEmulatedMedia", session,
                 features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Page.bringToFront", session)              # a tab that is not in front is not drawn
        self.events.clear()
        self.ask("Page.navigate", session, url=url)
        self.wait("Page.loadEventFired", session)
        page = Page(self, target, session)
        page.run("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true")
        return page


class Page:
    """A tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, of a promise when it is kept."""
        answer = self.browser.ask("Runtime.evaluate", self.session, expression=script, returnByValue=True,
                                  awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key; Alt counts 1 in the modifiers, Ctrl 2, Meta 4, Shift 8."""
        for kind in ("rawKeyDown", "keyUp"):
            self.browser.ask("Input.dispatchKeyEvent", self.session, type=kind, key=key, code=key,
                             windowsVirtualKeyCode=KEYS[key], modifiers=modifiers)

    def click(self, script: str) -> None:
        """Click with the mouse on the middle of the element that a JavaScript expression names."""
        # The theme scrolls smoothly: the mouse waits until all stands still and the element is what it meets.
        x, y = self.run(f"""(async (e) => {{
            document.documentElement.style.scrollBehavior = 'auto';
            for (let still = 0, x, y; ;) {{
              const r = e.getBoundingClientRect(), [u, v] = [r.x + r.width / 2, r.y + r.height / 2];
              const met = e.contains(document.elementFromPoint(u, v));
              if (!met) {{ e.scrollIntoView({{block: 'center'}}); }}
              still = met && u === x && v === y ? still + 1 : 0;
              if (still > 3) {{ return [u, v]; }}
              [x, y] = [u, v];
              await new Promise(requestAnimationFrame);
            }} }})({script})""")
        for kind in ("mousePressed", "mouseReleased"):
            self.browser.ask("Input.dispatchMouseEvent", self.session, type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[str]:
        """Return what went wrong since the page was opened: failed requests, errors of the console, foreign hosts."""
        self.run("1")                                       # what has happened before has now been told
        found = []
        for event in (e for e in self.browser.events if e.get("sessionId") == self.session):
            what = event["params"]
            match event["method"]:
                case "Network.loadingFailed":
                    found.append(f"failed: {what['errorText']}")
                case "Network.requestWillBeSent" if not what["request"]["url"].startswith(("file:", "data:", "blob:")):
                    found.append(f"asks for {what['request']['url']}")
                case "Runtime.exceptionThrown":
                    found.append(f"exception: {what['exceptionDetails'].get('text')}")
                case "Runtime.consoleAPICalled" if what["type"] in ("error", "assert", "warning"):
                    found.append(f"console: {[a.get('value') for a in what['args']]}")
                case "Log.entryAdded" if what["entry"]["level"] == "error":
                    found.append(f"log: {what['entry']['text']} {what['entry'].get('url', '')}")
        return found

    def picture(self) -> bytes:
        """Return what is seen, as PNG."""
        return base64.b64decode(self.browser.ask("Page.captureScreenshot", self.session)["data"])

    def close(self) -> None:
        """Close the tab."""
        self.browser.ask("Target.closeTarget", targetId=self.target)

"""Drive a headless Chromium with real key, click and drag events over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60


class Browser:
    """One tab in a dedicated browser process, closed at the end of the ``async with`` block."""

    async def __aenter__(self) -> Browser:  # noqa: D105
        program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
        if program is None:
            raise SystemExit(f"none of {', '.join(PROGRAMS)} is installed; on Debian: apt-get install chromium")
        self._folder = tempfile.TemporaryDirectory()
        # no sandbox: it needs privileges that a container lacks, and the page is our own
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            [program, *options, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port_file = Path(self._folder.name) / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        tabs = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")).body)
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self._socket = await websocket_connect(address, max_message_size=2**28)
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:  # noqa: D105
        self._reading.cancel()
        self._process.terminate()
        self._process.wait(_SECONDS)
        self._folder.cleanup()

    async def _read(self) -> None:
        while (message := await self._socket.read_message()) is not None:
            received = json.loads(message)
            if "id" in received:
                self._waiting.pop(received["id"]).set_result(received)
            else:
                self.events.append(received)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a DevTools command and return its result."""
        self._number += 1
        pending = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        response = await asyncio.wait_for(pending, _SECONDS)
        if "error" in response:
            raise RuntimeError(f"{method}: {response['error']}")
        return response["result"]

    async def run(self, code: str) -> Any:
        """Evaluate a JavaScript expression and return its value."""
        result = await self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{code}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, code: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _SECONDS
        while not await self.run(code):
            if time.monotonic() > end:
                raise TimeoutError(code)
            await asyncio.sleep(0.02)

    async def open(self, page: Path) -> None:
        """Load a page and wait for its load event."""
        self.events.clear()
        await self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            await asyncio.sleep(0.005)

    async def window(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Set the window size in CSS pixels and the preferred colour scheme."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def place(self, selector: str) -> tuple[float, float, float, float]:
        """Scroll to an element and return its left, top, width and height in the window."""
        box = await self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'});"
            " const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })()"
        )
        return box[0], box[1], box[2], box[3]

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Dispatch a mouse event: press, move, release or wheel."""
        await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    async def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click inside an element, at fractions of its width and height."""
        left, top, width, height = await self.place(selector)
        x, y = left + at[0] * width, top + at[1] * height
        await self.mouse("mouseMoved", x, y)
        await self.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        await self.mouse("mouseReleased", x, y, button="left", clickCount=1)

    async def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag inside an element, between two points given as fractions of its width and height."""
        left, top, width, height = await self.place(selector)
        points = [(left + x * width, top + y * height) for x, y in (start, end)]
        await self.mouse("mouseMoved", *points[0])
        await self.mouse("mousePressed", *points[0], button="left", buttons=1, clickCount=1)
        for step in range(1, 11):
            x, y = (a + step / 10 * (b - a) for a, b in zip(*points, strict=True))
            await self.mouse("mouseMoved", x, y, button="left", buttons=1)
        await self.mouse("mouseReleased", *points[1], button="left", clickCount=1)

    async def key(self, name: str, code: int, text: str = "") -> None:
        """Press and release a key; ``code`` is its Windows virtual key code."""
        more = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **more)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **more)

    async def write(self, text: str) -> None:
        """Type text into the focused element."""
        await self.send("Input.insertText", text=text)

    async def save_to(self, folder: Path) -> None:
        """Save downloads to a folder."""
        await self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    async def screenshot(self, path: Path) -> None:
        """Save a screenshot of the window as a PNG file."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def print(self, path: Path) -> None:
        """Print the page to a PDF file."""
        printed = await self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))

    def console_messages(self) -> list[str]:
        """Console errors and warnings since the page was opened."""
        messages = []
        for event in self.events:
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                messages.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                messages.append(parameters["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                messages.append(str(parameters["args"]))
        return messages

    def requests(self) -> list[str]:
        """URLs requested by the page, without the page itself and its embedded images."""
        urls = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls[1:] if not url.startswith(("data:", "blob:"))]

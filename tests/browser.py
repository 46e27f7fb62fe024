"""Drive headless Chromium through the Chrome DevTools protocol, over a pipe and without further packages."""

import base64
import json
import os
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions")
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def free_port() -> int:
    """A port of this machine that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Browser:
    """One page in a browser with a profile of its own. All requests and complaints of the page are recorded."""

    def __init__(self, profile: Path, language: str = "en-US", width: int = 1280) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no Chromium here: apt install chromium"
        reading, self._to = os.pipe()
        self._from, writing = os.pipe()
        command = [program, *FLAGS, *QUIET, f"--lang={language}", f"--user-data-dir={profile}", "about:blank"]
        bash = ["bash", "-c", f'exec "$@" 3<&{reading} 4>&{writing}', "bash", *command]
        environment = {**os.environ, "LANGUAGE": language.replace("-", "_")}
        self._process = subprocess.Popen(
            bash, pass_fds=(reading, writing), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        )
        for end in (reading, writing):
            os.close(end)
        self._buffer, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.getTargets")["targetInfos"][0]["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command, and return its result; what the browser reports meanwhile is recorded."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            assert answer is not None, f"no answer to {method}"
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._record(answer)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            self._buffer += os.read(self._from, 1 << 20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _record(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    def hosts(self) -> set[str]:
        """The hosts that the page asked for anything, without data and blob addresses."""
        return {urlsplit(url).netloc for url in self.requests if not url.startswith(("data:", "blob:", "about:"))}

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def reload(self) -> None:
        self.call("Page.reload")

    def resize(self, width: int, height: int = 1000) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < end, f"not within {seconds} s: {condition}; page: {self.text()[:3000]}"
            time.sleep(0.1)

    def text(self) -> str:
        return self.value("document.body ? document.body.innerText : ''")

    def wait_text(self, text: str, seconds: float = 60) -> None:
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(text)})", seconds)

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def click_tab(self, name: str) -> None:
        tab = f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.includes({json.dumps(name)}))"
        self.wait(tab)
        self.value(f"({tab}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Type a text into a field, in place of what it holds."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.value(f"(field => {{ field.focus(); field.select(); }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text)

    def key(self, key: str) -> None:
        """Press a key where the focus is."""
        code = KEYS.get(key) or ord(key.upper())
        more = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def upload(self, selector: str, path: Path) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path: Path) -> None:
        """Save the page in its full height."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def overflow(self) -> int:
        """By how many px the page is wider than the window."""
        return self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")

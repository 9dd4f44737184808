"""A page of Debian's headless chromium, driven over its debugging pipe, so no driver package is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """One page of a headless chromium, spoken to over file descriptors 3 and 4."""

    def __init__(self, profile: str) -> None:
        child_in, self.write_end = os.pipe()
        self.read_end, child_out = os.pipe()

        def place_pipes() -> None:
            os.dup2(child_in, 103)
            os.dup2(child_out, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        assert CHROMIUM is not None, "the tests of this file are skipped without chromium"
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=place_pipes,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self.buffer, self.count, self.session, self.events = b"", 0, "", []  # type: ignore[var-annotated]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.read_end, 1 << 20)
            assert data, "the browser closed its pipe"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        session = {"sessionId": self.session} if self.session else {}
        request = {"id": self.count, "method": method, "params": params, **session}
        os.write(self.write_end, json.dumps(request).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str, width: int = 1400, dark: bool = False, reduced_motion: bool = True) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else ""}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def key(self, key: str) -> None:
        text = {"text": {"Enter": "\r"}.get(key, key)} if key in (" ", "Enter") else {}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=KEYS.get(key, 0), **text
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, buttons=1)

    def seen(self, method: str) -> list[dict[str, Any]]:
        self.js("0")  # everything reported so far is now read
        return [event["params"] for event in self.events if event.get("method") == method]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self.write_end)
        os.close(self.read_end)

"""A server of this checkout for the judges of it: started as a user starts it, and ended as a system ends it."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "pictures" / "shapes.png"
KEY = "judges-key"


@contextmanager
def server(model: str = "vl2-nano", *flags: str, patience: float = 180) -> Iterator[str]:
    """The address of a server of `model`, as soon as it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(ROOT / ".venv" / "bin" / "modelwright"), "serve", model, "--port", str(port), *flags]
    process = subprocess.Popen(command, env=os.environ | {"MODELWRIGHT_API_KEYS": KEY})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, patience)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        assert status == 0, f"the server ended with {status}"


def _wait(url: str, process: "subprocess.Popen[bytes]", patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready after {patience:g} s")


def status(url: str) -> dict[str, Any]:
    """What the server says that it is doing."""
    request = urllib.request.Request(f"{url}/v1/status", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


class Checks:
    """Counts what holds, and prints what does not."""

    def __init__(self) -> None:
        self.passed, self.failed = 0, 0

    def holds(self, name: str, value: object) -> None:
        """Count one thing that is to be true."""
        if value:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {name}")

    def raises(self, name: str, kind: type[BaseException], work: Callable[[], object]) -> Any:
        """Count a call that is to raise; gives what it raised."""
        try:
            work()
        except kind as error:
            self.passed += 1
            return error
        except Exception as error:
            print(f"FAILED: {name}: raised {type(error).__name__}: {error}")
        else:
            print(f"FAILED: {name}: raised nothing")
        self.failed += 1
        return None

    def report(self) -> int:
        """Print the counts; the exit status."""
        print(f"{self.passed} held, {self.failed} did not")
        return 1 if self.failed else 0

"""Processes that serve, for tests of their beginning and their end."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds for what takes one or two where nothing else runs."""


class Process:
    """A server in a process of its own, what it says on stderr, and requests to it."""

    def __init__(self, command: list[str], environ: dict[str, str]):
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **environ}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, text: str) -> str:
        """The first line that holds a text."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.said:
                if text in line:
                    return line
            if self.process.poll() is not None:
                self._thread.join(10)
                assert any(text in line for line in self.said), self.said
            time.sleep(0.01)
        raise AssertionError(f"{text!r} was never said: {self.said}")

    @property
    def port(self) -> int:
        found = re.search(r"listening at https?://[^:]+:(\d+)", self.wait_for("listening at"))
        assert found is not None
        return int(found[1])

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            body, sent = json.dumps(body), {"content-type": "application/json", **sent}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def later(self, path: str) -> tuple[threading.Thread, list[tuple[int, bytes]]]:
        """A request in a thread, and where its answer will be, if there is one."""
        found: list[tuple[int, bytes]] = []

        def work() -> None:
            with suppress(OSError, http.client.HTTPException):
                found.append(self.ask(path))

        thread = threading.Thread(target=work)
        thread.start()
        return thread, found

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """The exit status; of a signal, as shells say it."""
        status = self.process.wait(PATIENCE)
        self._thread.join(10)
        return status if status >= 0 else 128 - status


@contextmanager
def process(*command: str, **environ: str) -> Iterator[Process]:
    """A server of Python, killed in the end if it still runs."""
    made = Process([sys.executable, *command], environ)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.send(signal.SIGKILL)
        made.ended()


def fake(*settings: str, **environ: str):
    """A `fake_server`."""
    return process("-m", "tests.server.fake_server", *settings, **environ)

"""A whole server in a process, with settings by name=value, in front of an engine that computes nothing.

``/v1/wait`` answers when the engine is drained, ``/v1/slow`` after half a second, ``/v1/die`` ends the engine.
"""

import ast
import asyncio
import sys
import time
from typing import Any

from modelwright.errors import ConfigError
from modelwright.server.run import Application, Parts, serve
from modelwright.server.settings import ServerSettings


class Engine:
    """One that lives until it is told to die."""

    last_step, longest_step, has_work, alive, running, waiting, statistics = 0.0, 0.0, False, True, 0, 0, None

    def __init__(self) -> None:
        self.drained = asyncio.Event()

    def watch_steps(self, told: Any) -> None:
        pass

    async def drain(self, timeout: float) -> None:
        self.drained.set()

    def close(self) -> None:
        say("closed")


def application(parts: Parts, loading: float, broken: bool) -> Application:
    time.sleep(loading)
    if broken:
        raise ConfigError("dtype must be another one", field="dtype")
    engine = Engine()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/v1/slow":
            await asyncio.sleep(0.5)
        elif path == "/v1/wait":
            await engine.drained.wait()
        elif path == "/v1/die":
            engine.alive = False
        body = path.encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return Application(app, engine, {"block_size": 16}, ("ready at {url}",), lambda whole: say(f"ended {whole}"))


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    loading, broken = float(words.pop("loading", 0)), bool(words.pop("broken", ""))
    chosen: dict[str, Any] = {}
    for name, value in words.items():
        try:
            chosen[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            chosen[name] = value
    settings = ServerSettings(**{"port": 0} | chosen)
    try:
        settings.check()
        return serve(settings, "fake", lambda parts: application(parts, loading, broken), say)
    except ConfigError as error:
        say(f"refused: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())

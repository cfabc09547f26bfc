"""`serve`, a server from its first signal of life to its last: listening, loading, serving, draining."""

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import uvicorn
from prometheus_client import disable_created_metrics

from modelwright.errors import ConfigError
from modelwright.server.access_log import AccessLog
from modelwright.server.auth import Keys
from modelwright.server.drain import Signals, drain
from modelwright.server.guard import Guard
from modelwright.server.health import DEAD, Condition, Health, Heart
from modelwright.server.instruments import EngineView
from modelwright.server.listener import Listener
from modelwright.server.metrics import Metrics
from modelwright.server.origins import is_loopback
from modelwright.server.settings import ServerSettings
from modelwright.server.sockets import listen, listen_at, tls_context, url_of
from modelwright.server.traces import open_traces

SWITCH = 0.001
"""Seconds after which the engine's thread lets the event loop's go on."""
BEAT = 0.05
"""Seconds between two looks at the engine and the clock."""
_LAST_ANSWERS = 1.0
_PARTING = 10.0


class ServedEngine(Heart, EngineView, Protocol):
    """What an engine is asked here; `AsyncEngine` is one."""

    def watch_steps(self, told: Callable[[Any], None]) -> None: ...

    async def drain(self, timeout: float) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a server has before it has a model, for the application to share."""

    settings: ServerSettings
    keys: Keys
    health: Health
    metrics: Metrics


@dataclass(frozen=True)
class Application:
    """What loading leads to.

    Attributes:
        app: in ASGI; its lifespan, if it is Starlette's, is entered and left.
        engine: what it serves, on a thread of its own.
        cache: facts about the cache, for metrics.
        lines: what the user is told when it is ready; ``{url}`` in them is the server's.
        ended: called in a thread when nothing is served any more; with True after the engine has ended in order.
    """

    app: Any
    engine: ServedEngine
    cache: Mapping[str, object]
    lines: tuple[str, ...] = ()
    ended: Callable[[bool], None] = lambda whole: None


def check_open(settings: ServerSettings, keys: Keys) -> None:
    """Raise a ConfigError where everybody could ask, and nobody said that this is meant."""
    if settings.no_auth and len(keys):
        raise ConfigError("no_auth must not be given together with keys", field="no_auth")
    if len(keys) or settings.no_auth or settings.uds is not None or is_loopback(settings.host):
        return
    raise ConfigError(
        f"host {settings.host} is reached by others, so the server needs keys: --api-key-file FILE or "
        "MODELWRIGHT_API_KEYS; --no-auth serves everybody",
        field="host",
    )


def serve(settings: ServerSettings, name: str, load: Callable[[Parts], Application], say: Callable[[str], None]) -> int:
    """Listen, load, and serve until a signal; returns the exit status.

    Args:
        name: of the model, as users know it.
        load: called in a thread once the port is open; its errors end the server and are raised here.
        say: tells the user a line.

    Raises:
        ConfigError: an address, a key or a certificate that cannot be used.
    """
    keys = Keys(settings, os.environ)
    check_open(settings, keys)
    disable_created_metrics()
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_Life(settings, name, keys, load, say).run())
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


class _Life:
    """One server."""

    def __init__(
        self,
        settings: ServerSettings,
        name: str,
        keys: Keys,
        load: Callable[[Parts], Application],
        say: Callable[[str], None],
    ):
        self._settings, self._name, self._keys, self._load, self._say = settings, name, keys, load, say
        self._health = Health(settings)
        self._metrics = Metrics(settings, name)
        traces = open_traces(os.environ, settings.trace_content)
        self._guard = Guard(settings, keys, self._health, self._metrics, AccessLog(settings), traces)
        self._tls = tls_context(settings)

    async def run(self) -> int:
        settings, signals = self._settings, Signals(self._read_keys)
        sockets = listen_at(settings.uds) if settings.uds else listen(settings.host, settings.port)
        async with AsyncExitStack() as stack:
            if settings.uds:
                stack.callback(_remove, settings.uds)
            if settings.metrics_port is not None:
                told = listen(settings.host, settings.metrics_port)
                only = _MetricsOnly(self._guard)
                await stack.enter_async_context(Listener(settings, only, told, None, self._metrics.refused))
                self._say(f"modelwright: metrics at http://{_at(told)}/metrics")
            await stack.enter_async_context(Listener(settings, self._guard, sockets, self._tls, self._metrics.refused))
            url = url_of(settings, sockets)
            self._say(f"modelwright: listening at {url}, loading {self._name}")
            made = await self._loaded(signals)
            if made is None:  # what loads cannot be stopped
                _remove(settings.uds)
                _leave(0)
            return await self._serve(made, signals, url)
        raise AssertionError("an exit stack swallows nothing")

    async def _loaded(self, signals: Signals) -> Application | None:
        """What the thread that loads gives; None where a signal came before."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Application] = loop.create_future()
        parts = Parts(self._settings, self._keys, self._health, self._metrics)

        def work() -> None:
            try:
                made = self._load(parts)
                _spare_the_collector()
            except BaseException as error:
                _later(loop, future, error=error)
            else:
                _later(loop, future, made)

        threading.Thread(target=work, name="modelwright-load", daemon=True).start()
        asked = asyncio.ensure_future(signals.first.wait())
        await asyncio.wait({future, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        return future.result() if future.done() else None

    async def _serve(self, made: Application, signals: Signals, url: str) -> int:
        health = self._health
        self._metrics.watch(made.engine, made.cache, health.stalled_for)
        made.engine.watch_steps(self._metrics.stepped)
        async with AsyncExitStack() as stack:
            router = getattr(made.app, "router", None)
            if router is not None:
                await stack.enter_async_context(router.lifespan_context(made.app))
            health.engine, self._guard.app = made.engine, made.app
            health.state = Condition.SERVING
            for line in made.lines:
                self._say(f"modelwright: {line.replace('{url}', url)}")
            dead = asyncio.ensure_future(self._beat())
            asked = asyncio.ensure_future(signals.first.wait())
            await asyncio.wait({dead, asked}, return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                self._say("modelwright: the engine has ended, and the server with it")
                await asyncio.sleep(_LAST_ANSWERS)
                await _ended(made, whole=False)
                return DEAD
            self._say(f"modelwright: {signal.Signals(signals.last).name}: no more requests are taken")
            whole = await signals.unless_second(drain(self._settings, health, self._guard, made.engine))
            dead.cancel()
        if not whole or not await _ended(made):
            _remove(self._settings.uds)
            _leave(0 if whole else 128 + signals.last)
        return 0

    async def _beat(self) -> None:
        """Watch the engine and the clock, until the engine is dead."""
        while self._health.check() is not Condition.DEAD:
            start = time.perf_counter()
            await asyncio.sleep(BEAT)
            self._metrics.loop_late(max(0.0, time.perf_counter() - start - BEAT))
            self._health.beat()

    def _read_keys(self) -> None:
        try:
            self._keys.reload()
        except ConfigError as error:
            self._say(f"modelwright: the keys stay as they were: {error}")
        else:
            self._say(f"modelwright: {len(self._keys)} keys are known now")


class _MetricsOnly:
    """The guard, as far as metrics and probes go."""

    def __init__(self, guard: Guard):
        self._guard = guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {**scope.get("state", {}), "metrics_only": True}
        await self._guard(scope, receive, send)


def _spare_the_collector() -> None:
    """Let the garbage collector pass over all that is there once a model is loaded: each look at it takes 0.15 s."""
    gc.collect()
    gc.freeze()


async def _ended(made: Application, whole: bool = True) -> bool:
    """Let the engine end; False where its thread does not, in the middle of a step that takes for ever."""
    future = asyncio.get_running_loop().create_future()

    def work() -> None:
        with suppress(Exception):
            made.engine.close()
            made.ended(whole)
        _later(future.get_loop(), future, True)

    threading.Thread(target=work, name="modelwright-end", daemon=True).start()
    try:
        await asyncio.wait_for(future, _PARTING)
    except TimeoutError:
        return False
    return True


def _later(
    loop: asyncio.AbstractEventLoop, future: Any, result: Any = None, error: BaseException | None = None
) -> None:
    """Set a future from another thread; a loop that has ended has nobody who waits."""

    def settle() -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(result)

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(settle)


def _leave(status: int) -> NoReturn:
    """End the process, whatever its threads do, and all that it started."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join(1.0)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _remove(path: str | None) -> None:
    if path is not None:
        with suppress(OSError):
            os.unlink(path)


def _at(sockets: list[socket.socket]) -> str:
    host, port = sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loop_factory() -> Any:
    return uvicorn.Config(None, loop="auto", log_config=None).get_loop_factory()  # pyright: ignore[reportArgumentType]

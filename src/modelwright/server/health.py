"""`Health`, the state that probes are told: by the engine's heartbeat, without asking the engine anything."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

DEAD = 70
"""The exit status of a server whose engine's thread has ended."""
SLOWEST = 20
"""A step that takes so many times as long as the longest before is a stall."""
PATHS = ("/health", "/livez", "/readyz")


class Heart(Protocol):
    """What an engine shows of itself without a step, as `AsyncEngine` does.

    Attributes:
        last_step: when the last step ended, by `time.monotonic`.
        longest_step: in seconds.
        has_work: whether there is anything to compute.
        alive: whether its thread runs.
    """

    @property
    def last_step(self) -> float: ...

    @property
    def longest_step(self) -> float: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def alive(self) -> bool: ...


class Condition(Enum):
    """How a server is, and which of its probes (live, ready, health) are then content."""

    LOADING = "loading", True, False, False
    SERVING = "serving", True, True, True
    DRAINING = "draining", True, False, True
    CLOSING = "shutting_down", True, False, True
    STALLED = "engine_stalled", False, False, False
    DEAD = "engine_dead", False, False, False

    def __init__(self, called: str, live: bool, ready: bool, well: bool):
        self.called = called
        self.probes = {"/livez": live, "/readyz": ready, "/health": well}


_WHY = {
    Condition.LOADING: ("loading", "the model is being loaded", 5),
    Condition.CLOSING: ("shutting_down", "the server is shutting down and takes no new requests", 30),
    Condition.STALLED: ("engine_stalled", "the engine has work and has made no step for long", 30),
    Condition.DEAD: ("engine_stalled", "the engine has ended, and the server with it", 30),
}


@dataclass
class Health:
    """What becomes of a server.

    Attributes:
        state: what the server itself knows: LOADING, then SERVING, DRAINING (still served, not to be given more) and
            CLOSING (nothing new is taken).
        engine: once there is one.
    """

    settings: ServerSettings
    clock: Callable[[], float] = time.monotonic
    state: Condition = Condition.LOADING
    engine: Heart | None = None
    _idle: float = 0.0

    def __post_init__(self) -> None:
        self._idle = self.clock()

    def beat(self) -> None:
        """To be called a few times a second: an engine that had nothing to do has not stood still."""
        if self.engine is None or not self.engine.has_work:
            self._idle = self.clock()

    def check(self) -> Condition:
        """How the server is at this moment."""
        if self.engine is None or self.state is Condition.LOADING:
            return self.state
        if not self.engine.alive:
            return Condition.DEAD
        if self.stalled_for() > max(self.settings.stall_seconds, SLOWEST * self.engine.longest_step):
            return Condition.STALLED
        return self.state

    def stalled_for(self) -> float:
        """Seconds for which there has been work and no step has ended."""
        if self.engine is None or not self.engine.has_work:
            return 0.0
        return max(0.0, self.clock() - max(self.engine.last_step, self._idle))

    def require(self) -> None:
        """Raise an ApiError, 503, where a new request is not to be taken."""
        reason = _WHY.get(self.check())
        if reason is not None:
            code, message, after = reason
            raise ApiError(503, code, message, headers={"retry-after": str(after)})

    def probe(self, path: str) -> tuple[int, bytes]:
        """Status and JSON of one of `PATHS`; what is not well is told as an error."""
        condition = self.check()
        if condition.probes[path]:
            return 200, b'{"status":"%s"}' % condition.called.encode()
        code, message, _ = _WHY.get(condition, ("shutting_down", "the server is about to shut down", 30))
        return 503, ApiError(503, code, message).body()

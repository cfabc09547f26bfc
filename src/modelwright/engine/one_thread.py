"""`OneThread`, a door through which one thread goes at a time; who comes meanwhile is told, and does not wait."""

from threading import RLock
from types import TracebackType

from modelwright.errors import RequestError


class OneThread:
    """A context that one thread is in, as deep as it likes.

    Raises:
        RequestError: on entering, another thread is in it.
    """

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RequestError(
                "an engine serves one thread at a time, and another one is using it: let an AsyncEngine, or an engine "
                "for each thread, serve several"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._lock.release()

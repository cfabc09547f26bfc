"""Something iterated ahead in a thread; what is iterated is not known here."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_LOOK = 0.1
"""Seconds after which a thread that waits for room asks whether it is still wanted."""


class Prefetched(Generic[Item]):
    """The items of an iterator, of which a thread makes ``depth`` ahead; what the iterator raises is raised in turn."""

    def __init__(self, items: Iterator[Item], depth: int):
        self._made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._unwanted = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._error is None:
            item, self._error = self._made.get()
            if self._error is None:
                return item  # pyright: ignore[reportReturnType]
        raise self._error

    def close(self) -> None:
        """End the thread, whatever it has made."""
        self._unwanted.set()
        self._thread.join()

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> bool:
        while not self._unwanted.is_set():
            try:
                self._made.put((item, error), timeout=_LOOK)
                return True
            except queue.Full:
                continue
        return False

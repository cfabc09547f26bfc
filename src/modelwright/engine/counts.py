"""`Counts`, what an engine's thread has to do and when it last did some, in numbers for any thread."""

import time
from threading import Lock


class Counts:
    """Kept up by the loop that asks and the thread that answers.

    Attributes:
        waiting: requests whose prompt nobody has begun to read.
        running: those that were begun and have not ended; one that lost its pages for a while is among them.
        queued_tokens: of the prompts of those that wait.
        last_step: when the last step ended, in seconds of ``time.monotonic``, or when there was work again after none.
        longest_step: the seconds of the longest step so far.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.waiting = self.running = self.queued_tokens = 0
        self.last_step, self.longest_step = time.monotonic(), 0.0

    @property
    def requests(self) -> int:
        """All that have not ended."""
        with self._lock:
            return self.waiting + self.running

    def came(self, tokens: int) -> None:
        """A request whose prompt has so many tokens waits."""
        with self._lock:
            if self.waiting + self.running == 0:
                self.last_step = time.monotonic()  # nobody was late before there was something to do
            self.waiting += 1
            self.queued_tokens += tokens

    def started(self, tokens: int) -> None:
        """One that waited runs."""
        with self._lock:
            self.waiting -= 1
            self.running += 1
            self.queued_tokens -= tokens

    def ended(self, tokens: int, started: bool) -> None:
        """One has ended, wherever it stood."""
        with self._lock:
            if started:
                self.running -= 1
            else:
                self.waiting -= 1
                self.queued_tokens -= tokens

    def stepped(self, began: float) -> None:
        """A step that began then is done."""
        self.last_step = now = time.monotonic()
        self.longest_step = max(self.longest_step, now - began)

"""Processes that make documents ahead of the loop; what they are given and when decides nothing about the result.

They are processes and not threads because templates, tokenizers and the resizing of pictures hold Python's lock, which
the loop needs, and because a decoder that crashes on a damaged picture must not take the run with it. They are started
as fresh interpreters: a fork of a process with threads may hang, and one that imports the caller's script would run it
again. A thread of this process waits for each, so that whoever is free takes the next row.
"""

import os
import signal
import subprocess
import sys
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

from modelwright.data.documents import Document, Encoder
from modelwright.data.examples import Example
from modelwright.errors import RequestError, UserError

_RUN = "import sys; from modelwright.data.workers import serve; serve(int(sys.argv[1]))"


class WorkerDied(RequestError):
    """A process that makes documents has ended, so that the run cannot go on."""


class Workers:
    """Makes documents of examples, in ``count`` processes or, where that is 0, when they are asked for.

    Args:
        encoder: what makes them; it is sent to each process once.
        count: ``data.workers``.
    """

    def __init__(self, encoder: Encoder, count: int):
        self.count = count
        self._encoder = encoder
        self._processes = [_Process(encoder) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._pool = ThreadPoolExecutor(count, "documents") if count else None

    def submit(self, example: Example, outline: bool) -> "Future[Document]":
        """The document of an example, or its outline, as soon as it is made."""
        if self._pool is not None:
            return self._pool.submit(self._ask, example, outline)
        done: Future[Document] = Future()
        try:
            done.set_result(_make(self._encoder, example, outline))
        except Exception as error:
            done.set_exception(error)
        return done

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.child.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.child.wait()
            process.way.close()

    def _ask(self, example: Example, outline: bool) -> Document:
        process = self._idle.get()
        try:
            return process.ask(example, outline)
        finally:
            self._idle.put(process)


class _Process:
    """One process, and the way to it."""

    def __init__(self, encoder: Encoder):
        self.way, theirs = Pipe()
        self.child = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
        theirs.close()
        self._encoder: Encoder | None = encoder

    def ask(self, example: Example, outline: bool) -> Document:
        """What the process makes of an example; raises what it raised."""
        try:
            if self._encoder is not None:  # not sooner: the process first has to start, which nobody waits for
                self.way.send(self._encoder)
                self._encoder = None
            self.way.send((example, outline))
            made, result = self.way.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(f"a data worker {self._end()} while it made the document of {example.place}") from error
        if made:
            return result
        raise result

    def _end(self) -> str:
        try:
            code = self.child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "no longer answered"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def serve(descriptor: int) -> None:
    """What a process does: make documents of the examples that come through a pipe, until it is closed."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)  # they are meant for the loop, which ends this process itself
    way = Connection(descriptor)
    try:
        encoder = way.recv()
        while True:
            example, outline = way.recv()
            way.send(_answer(encoder, example, outline))
    except (EOFError, OSError):
        return  # the loop has ended


def _answer(encoder: Encoder, example: Example, outline: bool) -> tuple[bool, Any]:
    try:
        return True, _make(encoder, example, outline)
    except UserError as error:
        return False, error
    except Exception:  # ours to mend: where it arose must not be lost on the way
        return False, RuntimeError(traceback.format_exc())


def _make(encoder: Encoder, example: Example, outline: bool) -> Document:
    return encoder.outline(example) if outline else encoder(example)

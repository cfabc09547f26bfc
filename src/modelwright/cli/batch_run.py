"""Lines through an engine: fed as room comes free, their answers handed on in the order of the lines."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelwright.cli.asking import Asked, Reader
from modelwright.cli.lines import Line
from modelwright.engine.engine import Engine
from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.results import Completion, Update
from modelwright.errors import LONGEST, RequestError

AHEAD = 4
"""How many requests are in the engine for each sequence that may run: enough that none waits for a line to be read."""
HELD = 64
"""How many lines, for each sequence that may run, wait to be written behind one that takes long."""
PICTURE_BYTES = 1 << 30
"""Of pictures in the engine; beyond it no further line is read."""


@dataclass
class Open:
    """A line that is not written yet."""

    line: Line
    asked: Asked | None = None
    error: str | None = None
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether its answer can be written."""
        return self.asked is None or len(self.completions) == self.asked.params.n

    def answer(self, with_text: bool) -> dict[str, Any]:
        """The answer's line: what was said, or why nothing was."""
        if self.asked is None or self.error is not None:
            return {"id": self.line.id, "error": self.error, "key": self.line.key}
        outputs = [self.completions[index] for index in sorted(self.completions)]
        said: dict[str, list[Any]] = {"text": [one.text for one in outputs]}
        if not with_text:
            said = {"token_ids": [one.tokens for one in outputs]}
        said["finish_reason"] = [one.finish_reason.value for one in outputs]
        if self.asked.params.logprobs is not None:
            said["logprobs"] = [_plain(one.logprobs or ()) for one in outputs]
        counts = {
            "prompt_tokens": len(self.asked.prompt),
            "completion_tokens": sum(len(one.tokens) for one in outputs),
        }
        said = {name: values[0] for name, values in said.items()} if len(outputs) == 1 else _plural(said)
        return {"id": self.line.id} | said | counts | {"key": self.line.key}


@dataclass
class Progress:
    """How far a run is: lines written, how many of them errors, why the first failed, and tokens drawn."""

    lines: int = 0
    errors: int = 0
    first_error: str | None = None
    tokens: int = 0


class BatchRun:
    """Answers lines with an engine that serves nobody else.

    Args:
        write: called with each answer, in the order of the lines.
    """

    def __init__(self, engine: Engine, reader: Reader, write: Callable[[dict[str, Any]], None]):
        self.progress = Progress()
        self._engine, self._reader, self._write = engine, reader, write
        self._with_text = engine.tokenizer is not None
        self._open: deque[Open] = deque()
        self._served: dict[str, Open] = {}
        self._picture_bytes = 0

    def step(self, lines: Iterator[Line]) -> bool:
        """Compute a step, write what is done, read lines while there is room for them; False once all are written."""
        for update in self._updates():
            self._take(update)
        self._write_done()
        self._fill(lines)
        return bool(self._open)

    def _updates(self) -> list[Update]:
        """What a step added; whatever it raises ends the line that raises it alone."""
        try:
            return self._engine.step()
        except Exception as error:
            return self._engine.recover(error)

    def _fill(self, lines: Iterator[Line]) -> None:
        batch = self._engine.config.max_batch
        while (
            len(self._served) < AHEAD * batch
            and len(self._open) < HELD * batch
            and self._picture_bytes < PICTURE_BYTES
            and (line := next(lines, None)) is not None
        ):
            self._open.append(self._ask(line))
            self._write_done()

    def _ask(self, line: Line) -> Open:
        """The line in the engine, or why it cannot be: what reading it raises is the line's, and ends no other."""
        try:
            asked = self._reader.read(line)
            request = self._engine.add_request(asked.prompt, asked.params, id=f"line {line.number}")
        except RequestError as error:
            return Open(line, error=_of_line(line, str(error)))
        except Exception as error:  # a chat template is a program of its own
            return Open(line, error=_of_line(line, f"{type(error).__name__}: {error}"))
        opened = self._served[request] = Open(line, asked)
        self._picture_bytes += asked.picture_bytes
        return opened

    def _take(self, update: Update) -> None:
        self.progress.tokens += len(update.tokens)
        if update.completion is None:
            return
        opened = self._served[update.request]
        opened.completions[update.index] = update.completion
        if update.completion.error is not None:
            opened.error = _of_line(opened.line, update.completion.error)
        if opened.done and opened.asked is not None:
            self._picture_bytes -= opened.asked.picture_bytes
            del self._served[update.request]

    def _write_done(self) -> None:
        while self._open and self._open[0].done:
            opened = self._open.popleft()
            self._write(opened.answer(self._with_text))
            self.progress.lines += 1
            if opened.error is not None:
                self.progress.errors += 1
                self.progress.first_error = self.progress.first_error or opened.error


def _of_line(line: Line, error: str) -> str:
    """The sentence with the line that it is of, and no longer than anybody reads."""
    place = f"line {line.number}: "
    return f"{place}{error.removeprefix(place):.{LONGEST}}"


def _plural(said: dict[str, list[Any]]) -> dict[str, list[Any]]:
    names = {"text": "texts", "finish_reason": "finish_reasons"}
    return {names.get(name, name): values for name, values in said.items()}


def _plain(logprobs: tuple[TokenLogprobs, ...]) -> list[dict[str, Any]]:
    return [{"token_id": one.token, "logprob": one.logprob, "rank": one.rank, "top": one.top} for one in logprobs]

"""One choice of a completion: the prompt again where that is asked for, and log-probabilities in columns."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.results import Update
from modelwright.server.token_texts import TokenTexts
from modelwright.server.wire.completions import CompletionLogprobs


@dataclass
class Columns:
    """Log-probabilities by token; the offset counts characters of the choice's text."""

    tokens: list[str] = field(default_factory=list)
    own: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def extend(self, other: "Columns") -> None:
        self.tokens += other.tokens
        self.own += other.own
        self.top += other.top
        self.offsets += other.offsets

    def logprobs(self) -> CompletionLogprobs:
        return CompletionLogprobs(self.tokens, self.own, self.top, self.offsets)


class CompletionText:
    """What updates add to one choice.

    Args:
        echo: the text of the prompt, which comes first; empty where it is not asked for.
        top: how many alternatives are told of each token; None for no log-probabilities.
        skips: whether the text of an answer leaves special tokens out.
    """

    def __init__(self, echo: str, texts: TokenTexts, top: int | None, skips: bool = True):
        self._echo, self._texts, self._top, self._skips = echo, texts, top, skips
        self._begun = False
        self._offset = 0
        self._characters = _characters()

    def take(
        self, update: Update, prompt: Sequence[int], prompt_logprobs: Sequence[TokenLogprobs] | None
    ) -> tuple[str, Columns]:
        """The text and the columns that an update adds.

        Args:
            prompt: its tokens.
            prompt_logprobs: of each of them but the first, where they are told.
        """
        columns, text = Columns(), update.text
        if not self._begun:
            self._begun = True
            text = self._echo + text
            if self._top is not None and self._echo:
                self._add_first(columns, prompt[0])
                for each in prompt_logprobs or ():
                    self._add(columns, each, self._of_echo)
            self._offset, self._characters = len(self._echo), _characters()
        if self._top is not None:
            for each in update.logprobs:
                self._add(columns, each, self._of_answer)
        return text, columns

    def _add_first(self, columns: Columns, token: int) -> None:
        """Nothing comes before the first token that could foretell it."""
        columns.tokens.append(self._texts.of(token)[0])
        columns.own.append(None)
        columns.top.append(None)
        columns.offsets.append(self._offset)
        self._offset += self._of_echo(token)

    def _add(self, columns: Columns, found: TokenLogprobs, length: Callable[[int], int]) -> None:
        """The likeliest tokens and the one that stands there; where several have one text, the likeliest counts."""
        text, own = self._texts.of(found.token)[0], max(found.logprob, -9999.0)
        columns.tokens.append(text)
        columns.own.append(own)
        top = {self._texts.of(id_)[0]: max(logprob, -9999.0) for id_, logprob in reversed(found.top[: self._top])}
        columns.top.append(dict(reversed(top.items())) | {text: max(own, top.get(text, own))})
        columns.offsets.append(self._offset)
        self._offset += length(found.token)

    def _of_echo(self, token: int) -> int:
        """How many characters of the prompt's text a token is: none of them, where it is a mark around it."""
        said = self._characters.decode(bytes(self._texts.of(token)[1]))
        for part in (said, said.removeprefix(" ")):  # with which SentencePiece begins a text
            if self._echo.startswith(part, self._offset):
                return len(part)
        return 0

    def _of_answer(self, token: int) -> int:
        left_out = self._skips and token in self._texts.special
        return 0 if left_out else len(self._characters.decode(bytes(self._texts.of(token)[1])))


def _characters() -> codecs.IncrementalDecoder:
    """Of tokens that hold parts of characters: each counts where it is whole."""
    return codecs.getincrementaldecoder("utf-8")("replace")

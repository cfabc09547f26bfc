"""One choice of a completion: the prompt again where that is asked for, and log-probabilities in columns."""

from collections.abc import Sequence
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
    """

    def __init__(self, echo: str, texts: TokenTexts, top: int | None):
        self._echo, self._texts, self._top = echo, texts, top
        self._begun = False
        self._offset = 0

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
                    self._add(columns, each)
        if self._top is not None:
            for each in update.logprobs:
                self._add(columns, each)
        return text, columns

    def _add_first(self, columns: Columns, token: int) -> None:
        """Nothing comes before the first token that could foretell it."""
        text, _ = self._texts.of(token)
        columns.tokens.append(text)
        columns.own.append(None)
        columns.top.append(None)
        self._place(columns, text)

    def _add(self, columns: Columns, found: TokenLogprobs) -> None:
        text, _ = self._texts.of(found.token)
        columns.tokens.append(text)
        columns.own.append(max(found.logprob, -9999.0))
        top = {self._texts.of(id_)[0]: max(logprob, -9999.0) for id_, logprob in reversed(found.top[: self._top])}
        columns.top.append(dict(reversed(top.items())))
        self._place(columns, text)

    def _place(self, columns: Columns, text: str) -> None:
        columns.offsets.append(self._offset)
        self._offset += len(text)

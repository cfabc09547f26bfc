"""`OutputStream`, an output as it grows: its text and the reason why it ends; it draws nothing and prints nothing."""

from collections.abc import Collection, Mapping
from enum import StrEnum

from modelwright.engine.detokenize import Detokenizer, StopTexts
from modelwright.engine.params import SamplingParams
from modelwright.engine.sampling import NO_TOKEN
from modelwright.errors import RequestError


class FinishReason(StrEnum):
    """Why an output ended: at an end token, a stop text or the end of its guide; at its length; cut off; or failed."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class OutputStream:
    """Takes the tokens of one sample and gives its text, up to where it ends.

    Args:
        params: the request's.
        room: how many tokens it may have, from ``params.room``.
        ends: the tokens that end it, from ``params.ends``; such a token is no part of the text, unless
            ``include_stop_str_in_output`` asks for it.
        detokenizer: None where there is no text, as for pictures made of tokens.
        unseen_stops: the stop texts that are a special token each, by that token, where special tokens are left out of
            the text, so that it cannot show them.

    Attributes:
        text: all text that was given.
        tokens: how many tokens were taken, the last one included.
        finish_reason: None while it goes on.
        stop_reason: the stop text or the id of ``stop_token_ids`` that ended it; None for other ends.

    Raises:
        RequestError: stop texts are asked for where there is no text.
    """

    def __init__(
        self,
        params: SamplingParams,
        room: int,
        ends: Collection[int],
        detokenizer: Detokenizer | None,
        unseen_stops: Mapping[int, str] | None = None,
    ):
        if params.stop and detokenizer is None:
            raise RequestError(f"stop texts need a tokenizer, and the engine has none; got {list(params.stop)}")
        self.text = ""
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._params = params
        self._room = room
        self._ends = frozenset(ends)
        self._detokenizer = detokenizer
        self._stops = StopTexts(params.stop, params.include_stop_str_in_output)
        self._unseen_stops = unseen_stops or {}

    def put(self, token: int, *, guide_ended: bool = False, stops: tuple[bool, bool] = (True, True)) -> str:
        """Take the next token and give the text that it completes; tokens after the end change nothing.

        `NO_TOKEN` aborts the output. `guide_ended` says that the guide allows nothing after `token`, `stops` whether a
        guide lets tokens of ``stop_token_ids`` and stop texts end the output here.
        """
        if self.finish_reason is not None:
            return ""
        if token == NO_TOKEN:
            return self.end(FinishReason.ABORT)
        self.tokens += 1
        if token in self._ends and (stops[0] or token not in self._params.stop_token_ids):
            self.stop_reason = token if token in self._params.stop_token_ids else None
            shown = [token] if self._params.include_stop_str_in_output else []
            return self._read(shown, counts=False) + self.end(FinishReason.STOP)  # no stop text inside it cuts it
        if token in self._unseen_stops and self._counts(stops[1]):
            self.stop_reason = stop = self._unseen_stops[token]
            rest = self.end(FinishReason.STOP)
            return rest + self._keep(stop if self._params.include_stop_str_in_output else "")
        piece = self._read([token], stops[1])
        if self._stops.found is not None:
            self.stop_reason = self._stops.found
            return piece + self.end(FinishReason.STOP)
        if guide_ended:
            return piece + self.end(FinishReason.STOP)
        return piece + self.end(FinishReason.LENGTH) if self.tokens >= self._room else piece

    def end(self, reason: FinishReason) -> str:
        """End the output and give the text that was held back; an output ends once."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        rest = self._stops.feed(self._detokenizer.finish(), counts=False) if self._detokenizer else ""
        return self._keep(rest + self._stops.finish())

    def _read(self, tokens: list[int], counts: bool) -> str:
        piece = self._detokenizer.feed(tokens) if self._detokenizer else ""
        return self._keep(self._stops.feed(piece, counts=self._counts(counts)))

    def _counts(self, allowed: bool) -> bool:
        """Whether a stop text counts after the tokens so far."""
        return allowed and self.tokens >= self._params.min_tokens

    def _keep(self, piece: str) -> str:
        self.text += piece
        return piece

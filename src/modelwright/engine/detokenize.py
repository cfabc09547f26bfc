"""Tokens to text as they come: characters whole, stop texts found wherever tokens split them; no tokens are chosen."""

from collections.abc import Collection, Iterable, Sequence

from modelwright.engine.tokenizer import Tokenizer

_HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder prints for bytes that are no character, or not one yet
_LONGEST = 4  # bytes of a character, and so the tokens it may be split over


class Detokenizer:
    """Turns tokens into text piece by piece; the pieces together are what the tokenizer makes of all tokens at once.

    ``tokenizers``' own ``DecodeStream`` does not serve: where bytes stand for characters that a sentencepiece
    vocabulary lacks, it raises on a newline (a byte token) before an emoji, and at the end of an output it cannot give
    the tokens that it still holds back.

    Args:
        context: the last tokens of the prompt, where the text goes on from them (a tokenizer may drop the space before
            a text's first word); not part of the text.
        hidden: tokens that are left out of the text.
        skip_special_tokens: leave out all that the tokenizer calls special.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: Sequence[int] = (),
        hidden: Collection[int] = (),
        skip_special_tokens: bool = True,
    ):
        self._backend, self._skips = tokenizer.backend_tokenizer, skip_special_tokens
        self._hidden = frozenset(hidden)
        self._ids = list(context)
        self._given = len(self._ids)
        self._start = 0  # ids from here on are decoded together, so that spaces between words are kept
        self._known = self._whole(self._ids)  # ids before this one are in the text, or in the prompt's
        self._shown = len(self._decode(self._ids[: self._known]))  # characters of ids[start:known]

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` complete; empty while a character is unfinished."""
        self._ids += [token for token in tokens if token not in self._hidden]
        return self._advance(final=False)

    def finish(self) -> str:
        """What is left, broken characters too; nothing is left after it."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        if max(self._known, self._given) == len(self._ids):
            return ""
        now = self._decode(self._ids[self._start :])
        if len(now) <= self._shown or (now.endswith(_HALF) and not final):
            return ""
        piece = now[self._shown :]
        self._start, self._known = self._known, len(self._ids)
        self._shown = len(self._decode(self._ids[self._start :]))
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=self._skips)

    def _whole(self, ids: list[int]) -> int:
        """How many of `ids` come before an unfinished character at their end, which the next tokens may complete."""
        ends = range(len(ids), max(len(ids) - _LONGEST, -1), -1)
        return next((end for end in ends if not self._decode(ids[:end]).endswith(_HALF)), len(ids))


class StopTexts:
    """Passes text on up to the first stop text, and holds back what may be the beginning of one.

    The stop text that is complete first counts, of those complete at once the longest; so it does not matter in what
    pieces the text comes.

    Attributes:
        found: the stop text that ended the text; None while there was none.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        self.found: str | None = None
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def feed(self, text: str, counts: bool = True) -> str:
        """The part of the text so far that is certain; with `counts` false a stop text that it completes is text."""
        if self.found is not None:
            return ""
        text, self._held = self._held + text, ""
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends and counts:
            end, _, self.found = min(ends)
            return text[:end] if self._include else text[: end - len(self.found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back; nothing is left after it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, and not all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)

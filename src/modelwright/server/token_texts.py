"""What single tokens say, as text and as bytes: a token may be a part of a character."""

from functools import lru_cache

import tokenizers

_BYTE = "<0x"


class TokenTexts:
    """The tokens of one tokenizer.

    Attributes:
        special: those that a text without special tokens leaves out.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend
        self.special = frozenset(id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special)
        self._bytes_as_letters = backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__()
        self._added = {id_: token.content for id_, token in backend.get_added_tokens_decoder().items()}
        self.of = lru_cache(65536)(self._of)

    def _of(self, token: int) -> tuple[str, list[int]]:
        """The text of a token, with ``\\ufffd`` for what is no whole character, and its bytes in UTF-8."""
        raw = self._raw(token)
        return raw.decode("utf-8", "replace"), list(raw)

    def _raw(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        word = self._backend.id_to_token(token)
        if word is None:
            return b""
        if self._bytes_as_letters:
            letters = _letters()
            return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in word)
        if len(word) == 6 and word.startswith(_BYTE) and word.endswith(">"):
            return bytes([int(word[3:5], 16)])
        return word.replace("▁", " ").encode()


@lru_cache(1)
def _letters() -> dict[str, int]:
    """The letter that a byte-level vocabulary writes for each byte: itself if printable, else one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}

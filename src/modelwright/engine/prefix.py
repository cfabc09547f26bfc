"""Names of full pages by their content: SHA-256 chained over every key up to the page's end; it stores no page.

Keys and values depend on a token, on all tokens before it and on the weights, so a name covers the page's own keys, the
name of the page before it, and a salt for the weights. Equal names mean equal content: two contents of one name would
be a collision of SHA-256, which nobody can make, so a request cannot be crafted to read another's pages. Requests whose
very timing must not show what others asked get salts of their own.
"""

from collections.abc import Iterable
from hashlib import sha256

Key = int | tuple[str | bytes, int]
"""What stands at a position: a token's id, or of a row of a picture the hash of its pixels and the row's number."""


def root_name(salt: str) -> bytes:
    """The name before the first page; `salt` tells models and adapters apart."""
    return sha256(repr(salt).encode()).digest()


def page_name(before: bytes, keys: Iterable[Key]) -> bytes:
    """The name of a full page of `keys` after the page named `before`.

    ``repr`` writes integers, strings, bytes and tuples of them so that they can be read back: no two lists of keys have
    one text.
    """
    return sha256(before + repr(tuple(keys)).encode()).digest()

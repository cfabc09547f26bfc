"""`Tokenizer`, what the engine asks of a tokenizer; transformers' fast ones are such. No file is read here."""

from typing import Any, Protocol

import tokenizers

from modelwright.errors import ConfigError


class Tokenizer(Protocol):
    """Text to token ids, and the Rust tokenizer that turns ids back into text.

    The three ids are those of the marks that it has, None for a mark that it lacks.
    """

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the ``tokenizers`` library that does the work."""
        ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def pad_token_id(self) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, with the marks that belong around it or without."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        ...

    def __len__(self) -> int: ...


def settle(tokenizer: Tokenizer) -> None:
    """Let a tokenizer drop the padding and truncation of its file now.

    transformers' do that in their first call, and no other thread may use the Rust tokenizer at that moment.
    """
    tokenizer.encode("a")


def as_tokenizer(given: Any) -> Tokenizer | None:
    """`given`, which may be None; a ConfigError where no tokenizer of the ``tokenizers`` library stands behind it.

    transformers' classes get the ids of their marks at run time, so that no type checker can see that they fit.
    """
    if given is not None and not isinstance(getattr(given, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise ConfigError(
            f"the engine needs a fast tokenizer, with the tokenizers library behind it; got {type(given).__name__}"
        )
    return given

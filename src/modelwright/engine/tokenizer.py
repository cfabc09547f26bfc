"""`Tokenizer`, what the engine asks of a tokenizer; transformers' fast ones are such. Nothing is read from disk here."""

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


def check_tokenizer(tokenizer: Any) -> None:
    """Raise a ConfigError for a tokenizer without a ``backend_tokenizer``; None, which is no tokenizer, passes."""
    if tokenizer is not None and not isinstance(getattr(tokenizer, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise ConfigError(
            f"the engine needs a fast tokenizer, with the tokenizers library behind it; got {type(tokenizer).__name__}"
        )

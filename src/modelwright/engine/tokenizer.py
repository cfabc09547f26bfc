"""`Tokenizer`, what the engine asks of a tokenizer: transformers' fast ones are such; nothing is read from disk here."""

from typing import Any, Protocol

import tokenizers

from modelwright.errors import ConfigError


class Tokenizer(Protocol):
    """Text to token ids, and the Rust tokenizer that turns ids back into text.

    Attributes:
        backend_tokenizer: the tokenizer of the ``tokenizers`` library that does the work.
        bos_token_id, eos_token_id, pad_token_id: the ids of the marks that it has, None for one that it lacks.
    """

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def get_vocab(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...


def check_tokenizer(tokenizer: Any) -> None:
    """Raise a ConfigError for a tokenizer without a ``backend_tokenizer``; None, which is no tokenizer, passes."""
    if tokenizer is not None and not isinstance(getattr(tokenizer, "backend_tokenizer", None), tokenizers.Tokenizer):
        raise ConfigError(
            f"the engine needs a fast tokenizer, with the tokenizers library behind it; got {type(tokenizer).__name__}"
        )

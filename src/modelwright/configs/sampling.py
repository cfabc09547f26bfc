"""How the next token is chosen when a request does not say; it samples nothing."""

from dataclasses import dataclass

from modelwright.configs.base import require
from modelwright.configs.part import ConfigPart


@dataclass(frozen=True)
class SamplingSettings(ConfigPart):
    """Defaults of generation, in Hugging Face's sense of each.

    `top_k` 0 keeps all tokens; `top_p` keeps the smallest set that reaches it, the token that crosses it included;
    `repetition_penalty` 1 is none. Generation ends at any of `eos_token_ids`.
    """

    do_sample: bool = True
    top_k: int = 5
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_decode_length: int = 1024
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int | None = 0

    def check_rules(self) -> None:
        self.require_at_least(0, "top_k")
        self.require_at_least(1, "max_decode_length")
        require(0 <= self.top_p <= 1, f"top_p must be between 0 and 1, got {self.top_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, got {self.repetition_penalty}")

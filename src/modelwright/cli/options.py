"""What was asked of ``modelwright chat``, checked before anything heavy is imported."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelwright import zoo
from modelwright.errors import RequestError

DEFAULT_MODEL = "vl2-nano"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PATH = re.compile(r"(\.{1,2}|~)?/\S*")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None is an option that was not given."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    @property
    def heat(self) -> float:
        """The temperature in force: 0 is greedy; asking for ``top_p`` or ``top_k`` alone asks for sampling."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.top_p is None and self.top_k is None else 1.0

    def given(self) -> dict[str, Any]:
        """The options that were given, under their names in `SamplingParams`."""
        values = {"max_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p}
        values |= {"top_k": self.top_k, "repetition_penalty": self.repetition_penalty, "seed": self.seed}
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> None:
        """Raise a RequestError for the first option out of its range."""
        longest = self.max_new_tokens
        _require(longest is None or longest >= 1, "--max-new-tokens must be at least 1", longest)
        _require(0 <= self.heat < math.inf, "--temperature must be 0 or above", self.heat)
        _require(self.top_p is None or 0 < self.top_p <= 1, "--top-p must be above 0 and at most 1", self.top_p)
        _require(self.top_k is None or self.top_k >= 0, "--top-k must be at least 0", self.top_k)
        penalty = self.repetition_penalty
        _require(penalty is None or 0 < penalty < math.inf, "--repetition-penalty must be above 0", penalty)
        _require(self.seed is None or 0 <= self.seed < 2**63, "--seed must be from 0 to 2**63 - 1", self.seed)


@dataclass(frozen=True)
class ChatOptions:
    """The options of ``modelwright chat``, named as there."""

    model: str = DEFAULT_MODEL
    prompt: str | None = None
    images: tuple[Path, ...] = ()
    draw: Path | None = None
    sampling: Sampling = Sampling()
    chunk_size: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel: int = 1
    system: str = ""
    as_json: bool = False
    stats: bool = False

    def check(self) -> None:
        """Raise a RequestError for the first option that cannot be served."""
        self.sampling.check()
        _require(self.chunk_size is None or self.chunk_size >= 1, "--chunk-size must be at least 1", self.chunk_size)
        _require(self.tensor_parallel >= 1, "--tensor-parallel must be at least 1", self.tensor_parallel)
        if self.prompt is None and self.as_json:
            raise RequestError("--json prints one answer, so it needs a PROMPT")
        if self.prompt is not None and not self.prompt.strip():
            raise RequestError("the prompt is empty")
        if self.prompt is not None and self.draw is not None and not self.images:
            raise RequestError("--draw draws on a picture, so it needs --image")


def choose_model(first: str | None, second: str | None) -> tuple[str, str | None]:
    """The model and the prompt among two positional arguments; a lone one is whichever it looks like."""
    if first is None:
        return DEFAULT_MODEL, None
    if second is not None or _names_a_model(first):
        return first, second
    return DEFAULT_MODEL, first


def _names_a_model(text: str) -> bool:
    """A zoo name, a path (there or not) or a hub id; words are a prompt."""
    if text in (DEFAULT_MODEL, *zoo.names()) or _HUB_ID.fullmatch(text) or _PATH.fullmatch(text):
        return True
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise RequestError(f"{rule}, got {value}")

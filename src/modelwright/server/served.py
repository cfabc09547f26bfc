"""`Served`, the model behind the server: what it is called, what it can do, and the engine that computes it."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from modelwright.engine.async_engine import AsyncEngine
from modelwright.processing.special_tokens import GROUNDING_TOKENS
from modelwright.server.token_texts import TokenTexts
from modelwright.server.wire.errors import ApiError
from modelwright.serving.load import Loaded
from modelwright.serving.published import published_sampling

VERSION = version("modelwright")
"""Of the package."""


@dataclass(frozen=True)
class Served:
    """One model, loaded, and the engine on its thread.

    Attributes:
        loaded: the model and what makes its prompts.
        engine: nobody else uses it.
        context: how many tokens a prompt and its answer may have together.
        max_batch: how many answers are drawn at once.
        names: what requests may call it; the first is the one that replies say.
        any_name: requests may call it whatever they like.
        created: when it was loaded, in seconds since 1970.
    """

    loaded: Loaded
    engine: AsyncEngine
    context: int
    max_batch: int
    names: tuple[str, ...]
    any_name: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @property
    def reads_pictures(self) -> bool:
        return self.loaded.checkpoint.reads_pictures

    @cached_property
    def grounds(self) -> bool:
        """Whether its tokenizer has the tokens that boxes are written with."""
        return self.reads_pictures and set(GROUNDING_TOKENS) <= self.tokenizer.get_vocab().keys()

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer.backend_tokenizer)

    @cached_property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """By names of `SamplingParams`; special tokens stay in a text whose boxes are written with them."""
        return {"skip_special_tokens": not self.grounds, **published_sampling(self.loaded.checkpoint.folder)}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever may change an answer: the weights, their type, our version."""
        checkpoint, model = self.loaded.checkpoint, self.loaded.model
        weights = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for folder in (checkpoint.folder, *checkpoint.adapters)
            for path in folder.glob("*")
            if path.suffix in (".safetensors", ".gguf")
        )
        said = repr((checkpoint.architecture, weights, str(model.dtype), VERSION))
        return "fp_" + hashlib.sha256(said.encode()).hexdigest()[:12]

    def check_name(self, name: str) -> str:
        """What the reply calls the model.

        Raises:
            ApiError: no model here is called so.
        """
        if name in self.names or self.any_name:
            return name or self.name
        asked = f"{name[:200]!r} is not served here" if name else "the request names no model"
        served = ", ".join(self.names)
        raise ApiError(404, "model_not_found", f"{asked}; there is {served}", param="model")

"""What an engine and a request get where the caller says nothing: the model's serving fields, or ours.

A model whose config says ``use_past`` was configured for serving, as MindFormers' run files are: its engine and
sampling fields are then the defaults. Every other model answers greedily, with at most `NEW_TOKENS` tokens.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from modelwright.configs import CheckedConfig
from modelwright.configs.decoding import DecodingRules
from modelwright.configs.engine import EngineSettings
from modelwright.configs.sampling import SamplingSettings
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.families import family_of, resolve

NEW_TOKENS = 512
"""How long an answer may become."""


@runtime_checkable
class ServingConfig(Protocol):
    """A config that can say how its model is served; it does so where `use_past` is true."""

    use_past: bool

    @property
    def engine(self) -> EngineSettings: ...

    @property
    def sampling(self) -> SamplingSettings: ...


def engine_config(config: CheckedConfig, asked: Mapping[str, Any]) -> EngineConfig:
    """The limits of an engine for a model of `config`; `asked` are the fields that the caller named.

    Raises:
        ConfigError: a number is out of its range, or the config asks for what the engine does not do.
    """
    text_config = config.get_text_config()
    configured = isinstance(text_config, ServingConfig) and text_config.use_past
    limits = EngineConfig.from_settings(text_config.engine, **asked) if configured else EngineConfig(**asked)
    rules: DecodingRules = resolve(family_of(config).decoding)(text_config)
    limits.context_of(rules.context)
    return limits


def sampling_params(config: CheckedConfig, asked: Mapping[str, Any]) -> SamplingParams:
    """How a request to a model of `config` is continued; `asked` are the fields that the caller named.

    Asking for ``top_p``, ``top_k`` or ``min_p`` alone asks for sampling at temperature 1. Special tokens stay in the
    text, because grounding is written with them.

    Raises:
        RequestError: a value has the wrong type or is out of its range.
    """
    text_config = config.get_text_config()
    values: dict[str, Any] = {"skip_special_tokens": False}
    if asked.keys() & {"top_p", "top_k", "min_p"}:
        values["temperature"] = 1.0
    if isinstance(text_config, ServingConfig) and text_config.use_past:
        return SamplingParams.from_settings(text_config.sampling, **values | dict(asked))
    values.setdefault("temperature", 0.0)
    if not asked.keys() & {"max_tokens", "max_length"}:
        values["max_tokens"] = NEW_TOKENS
    return SamplingParams(**values | dict(asked))

"""What a serving engine reads from a config: lengths, pages, backend and quantization; no engine lives here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelwright.configs.base import require, require_one_of
from modelwright.configs.limits import BACKENDS
from modelwright.configs.part import ConfigPart
from modelwright.configs.quantization import QUANT_METHODS, stated
from modelwright.errors import ConfigError

INT4_GROUPS = (32, 64, 128)
WEIGHT_KEYS = {
    "int8_weight_only": ("lm_head",),
    "int8_dynamic": ("lm_head",),
    "int4_weight_only": ("group_size", "symmetric", "lm_head"),
}
"""What a `quant_config` may say besides its method."""


@dataclass(frozen=True)
class QuantSettings:
    """Stored types of a quantized model, `None` where nothing is: weights, activations and cached keys and values.

    `group` input channels of an int4 weight share a scale and, unless `symmetric`, an offset; `head` is whether the
    output head is quantized too.
    """

    weights: str | None = None
    activations: str | None = None
    kv_cache: str | None = None
    group: int = 32
    symmetric: bool = False
    head: bool = False

    def to_config(self) -> dict[str, Any]:
        """The `quant_config` that :func:`read_quantization` reads as this."""
        said = {"weight_dtype": self.weights, "activation_dtype": self.activations, "kvcache_dtype": self.kv_cache}
        values: dict[str, Any] = {"quant_method": "rtn", **{key: value for key, value in said.items() if value}}
        if self.weights and not self.kv_cache:
            method = "int8_dynamic" if self.activations else f"{self.weights}_weight_only"
            values = {"quant_method": method}
        if self.weights == "int4":
            values |= {"group_size": self.group, "symmetric": self.symmetric}
        return values | ({"lm_head": True} if self.head else {})


@dataclass(frozen=True)
class EngineSettings(ConfigPart):
    """How a model is served.

    `batch_size` is the number of requests a decode step has room for; `seq_length` caps prompt plus new tokens, and
    `max_decode_length` is that total where a request names none. With `use_past` keys and values are kept in
    `num_blocks` pages of `block_size` tokens. `is_dynamic` lets lengths vary instead of being rounded up to a few, and
    `chunk_prefill` lets pieces of prompts share a step with decodes. `backend` is `""`, `eager`,
    `record` or `cudagraph`; `compile` is MindFormers' word for `record`.
    """

    batch_size: int = 1
    seq_length: int = 2048
    max_decode_length: int = 1024
    use_past: bool = False
    block_size: int = 16
    num_blocks: int = 512
    is_dynamic: bool = False
    chunk_prefill: bool = False
    backend: str = ""
    quantization: QuantSettings | None = None

    def check_rules(self) -> None:
        self.require_at_least(1, "batch_size", "seq_length", "max_decode_length", "block_size", "num_blocks")
        require_one_of("llm_backend", self.backend, ("", "compile", *BACKENDS))
        require(self.use_past or not self.chunk_prefill, "chunk_prefill (True) needs use_past=True, got use_past=False")


def read_quantization(values: Mapping[str, Any] | None) -> QuantSettings | None:
    """What a `quant_config` asks for; `None` for none.

    The method stands under `quant_method`. `rtn` is MindFormers' rounding to nearest, whose `weight_dtype`,
    `activation_dtype` and `kvcache_dtype` say what is stored how; the other methods are named after what they do.
    Where weights are quantized, `lm_head` says whether the head is too. Where they are int4, `group_size` says how many
    inputs share a scale, and `symmetric` that they share no offset beside it.

    Raises:
        ConfigError: the method, a type or a key is unknown, or nothing would be quantized.
    """
    if not values:
        return None
    method = values.get("quant_method")
    if method not in QUANT_METHODS:
        raise ConfigError(f"quant_config quant_method must be one of {', '.join(QUANT_METHODS)}; got {method!r}")
    if method == "rtn":
        return _rounding({key: value for key, value in stated(values).items() if key != "quant_method"})
    given = {key: value for key, value in values.items() if key != "quant_method" and value is not None}
    more = [key for key in given if key not in WEIGHT_KEYS.get(method, ())]
    require(not more, f'quant_config of quant_method "{method}" takes no more keys, got {sorted(more)}')
    settings = {
        "int8_weight_only": QuantSettings(weights="int8"),
        "int4_weight_only": QuantSettings(weights="int4"),
        "int8_dynamic": QuantSettings(weights="int8", activations="int8"),
        "int8_kv": QuantSettings(kv_cache="int8"),
    }[method]
    return _with_details(settings, given)


def weight_quantization(config: Any) -> QuantSettings | None:
    """What a model's config asks for, if that concerns its weights.

    Only a Llama's config has `quant_config` for a field; the others keep it as a key of their file.

    Raises:
        ConfigError: as :func:`read_quantization`.
    """
    settings = read_quantization(getattr(config, "quant_config", None))
    return settings if settings is not None and settings.weights else None


def _rounding(given: Mapping[str, Any]) -> QuantSettings:
    allowed = {"weight_dtype": ("int8", "int4"), "activation_dtype": ("int8",), "kvcache_dtype": ("int8",)}
    details = WEIGHT_KEYS.get(f"{given.get('weight_dtype')}_weight_only", ())
    for key, value in given.items():
        if key in details:
            continue
        require(key in allowed, f'quant_config of quant_method "rtn" takes {", ".join(allowed)}; got "{key}"')
        require_one_of(f"quant_config {key}", value, allowed[key])
    settings = QuantSettings(given.get("weight_dtype"), given.get("activation_dtype"), given.get("kvcache_dtype"))
    require(bool(given), f'quant_config of quant_method "rtn" needs one of {", ".join(allowed)}; got none')
    if settings.activations and settings.weights != "int8":
        raise ConfigError(f'quant_config activation_dtype "int8" needs weight_dtype "int8", got {settings.weights!r}')
    return _with_details(settings, given)


def _with_details(settings: QuantSettings, given: Mapping[str, Any]) -> QuantSettings:
    group = given.get("group_size", settings.group)
    flags = {key: given.get(key, False) for key in ("symmetric", "lm_head")}
    sizes = ", ".join(map(str, INT4_GROUPS))
    require(
        type(group) is int and group in INT4_GROUPS, f"quant_config group_size must be one of {sizes}; got {group!r}"
    )
    for key, flag in flags.items():
        require(isinstance(flag, bool), f"quant_config {key} must be true or false; got {flag!r}")
    return replace(settings, group=group, symmetric=flags["symmetric"], head=flags["lm_head"])

"""RoPE settings: the two dialects of a config file read into one checked value; it computes no angles."""

import difflib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from modelwright.configs.base import MISSPELT, require
from modelwright.configs.field_types import is_number
from modelwright.errors import ConfigError

RopeKind = Literal["linear", "dynamic", "yarn", "llama3", "dynamic_ntk"]

_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}
_NAME_KEYS = ("type", "rope_type", "rope_theta")
_READ_ELSEWHERE = frozenset(
    {
        *("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        *("attention_factor", "truncate", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor"),
        *("partial_rotary_factor", "mrope_section", "mrope_interleaved", "extrapolation_factor"),
    }
)
"""Keys that change how some kind of rotation turns, here or in transformers' models, and would be meant to.

``original_max_position_embeddings`` is none: it says where a model comes from, whatever reads it.
"""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched beyond the trained context.

    `factor` is the stretch (>= 1); `original_max_position_embeddings` the context in tokens before it (for `dynamic`
    and `dynamic_ntk` the config's `max_position_embeddings`, unused by `linear`). Of YaRN (arXiv 2309.00071): the ramp
    runs between the dimensions that turn `beta_fast` and `beta_slow` times in the original context; `mscale` and
    `mscale_all_dim` weigh the logarithmic growth of cos/sin and, in DeepSeek-V2, of the softmax scale. Of `llama3`:
    wavelengths beyond the original context / `low_freq_factor` are stretched, those below it / `high_freq_factor` kept.
    `dynamic_ntk` is MindFormers' DYNAMIC_NTK, which takes no factor and differs from transformers' `dynamic`.
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class RopeSettings:
    """All that a rotary embedding is built from: base `theta`, rotated width `dim` (even), context and scaling.

    Raises:
        ConfigError: the scaling divides by zero at this base or width.
    """

    theta: float
    dim: int
    max_position_embeddings: int
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        kind = self.scaling.kind if self.scaling else None
        require(
            kind != "yarn" or self.theta > 1,
            f"rope_theta must be above 1 with yarn, which divides by its logarithm; got {self.theta:g}",
        )
        require(
            kind not in ("dynamic", "dynamic_ntk") or self.dim > 2,
            f'the rotated width must be above 2 with rope type "{kind}", which divides by width - 2; got {self.dim}',
        )

    @property
    def trained_length(self) -> int | None:
        """The length from which on a sequence is rotated by its own length; None where rotations never depend on it."""
        if self.scaling is None or self.scaling.kind not in ("dynamic", "dynamic_ntk"):
            return None
        return self.scaling.original_max_position_embeddings or self.max_position_embeddings

    def reach(self, cap: int) -> int:
        """How many tokens a sequence may have whose cap is `cap`: `dynamic` reaches `factor` times the context."""
        if self.scaling is None or self.scaling.kind != "dynamic":
            return cap
        return max(cap, int(self.scaling.factor * self.max_position_embeddings))

    @property
    def extension(self) -> dict[str, Any]:
        """What a rotary embedding is told of the extension beyond the trained context; nothing for plain RoPE."""
        scaling = self.scaling
        if scaling is None:
            return {}
        return {
            "kind": scaling.kind,
            "factor": scaling.factor,
            "trained_length": scaling.original_max_position_embeddings or self.max_position_embeddings,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "mscale": scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }


def parse_rope_scaling(
    values: Mapping[str, Any] | None, max_position_embeddings: int, source: str = "rope_scaling"
) -> RopeScaling | None:
    """Read a config's `rope_scaling`, or the scaling inside v5's `rope_parameters`; `source` names it in errors.

    The method stands under `type` or `rope_type`; `None` and `"default"` mean plain RoPE. Integers are welcome.
    Raises `ConfigError` for an unknown method or key, a missing key, or a value out of range.
    """
    if values is None:
        return None
    require(isinstance(values, Mapping), f"{source} must be a dict or None, got {values!r}")
    kind = _kind(values, source)
    given = _given(values)
    given = heeded_keys(given, kind, _KEYS[kind], source)
    if kind == "default":
        return None
    for key in ("factor", "original_max_position_embeddings") if kind == "yarn" else ("factor",):
        require(key in given, f'{source} of type "{kind}" needs "{key}", got only {sorted(given)}')
    for key, value in given.items():
        check_number(key, value, source)
    original = max_position_embeddings if kind == "dynamic" else given.pop("original_max_position_embeddings", None)
    scaling = RopeScaling(kind, original_max_position_embeddings=original, **{k: float(v) for k, v in given.items()})  # type: ignore[arg-type]
    require(
        scaling.beta_fast > scaling.beta_slow,
        f"{source} beta_fast ({scaling.beta_fast:g}) must be greater than beta_slow ({scaling.beta_slow:g})",
    )
    return scaling


def agreeing_rope_views(
    values: Mapping[str, Any], max_position_embeddings: int, default_theta: float
) -> dict[str, Any]:
    """The same RoPE in both dialects: `rope_theta` and `rope_scaling` (official code), `rope_parameters` (v5).

    `values` may hold either or both; `None` says nothing. Where both speak they must agree, else `ConfigError`.
    """
    scaling, parameters = values.get("rope_scaling"), values.get("rope_parameters")
    check_rope_agreement(values, max_position_embeddings)
    thetas = [values.get("rope_theta"), *(view.get("rope_theta") for view in (parameters, scaling) if view)]
    theta = next((theta for theta in thetas if theta is not None), default_theta)
    check_rope_theta(theta)
    chosen, source = (scaling, "rope_scaling") if scaling else (parameters or {}, "rope_parameters")
    kind, given = _kind(chosen, source), _given(chosen)
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **given},
        "rope_parameters": {"rope_theta": theta, "rope_type": kind, **given},
    }


def check_rope_agreement(values: Mapping[str, Any], max_position_embeddings: int) -> None:
    """Raise `ConfigError` unless the views of RoPE in `values` that are not `None` are valid and say the same."""
    scaling, parameters = values.get("rope_scaling"), values.get("rope_parameters")
    scaled = parse_rope_scaling(scaling, max_position_embeddings)
    in_parameters = parse_rope_scaling(parameters, max_position_embeddings, "rope_parameters")
    if scaling and parameters:
        require(scaled == in_parameters, f"rope_scaling ({scaling}) contradicts rope_parameters ({parameters})")
    for name, view in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        inner, outer = (view or {}).get("rope_theta"), values.get("rope_theta")
        if inner is not None and outer is not None:
            require(inner == outer, f"rope_theta ({outer}) contradicts rope_theta inside {name} ({inner})")


def check_rope_theta(theta: Any) -> None:
    """Raise `ConfigError` unless `theta` is a finite number above zero."""
    require(is_number(theta) and theta > 0, f"rope_theta must be a number above 0, got {theta!r}")


def _kind(values: Mapping[str, Any], source: str) -> Any:
    names = {values[key] for key in ("type", "rope_type") if values.get(key) is not None}
    require(len(names) < 2, f'{source} type "{values.get("type")}" contradicts rope_type "{values.get("rope_type")}"')
    if not names and _given(values):
        raise ConfigError(f'{source} needs "type" (or "rope_type"), got only {sorted(values)}')
    kind = names.pop() if names else "default"
    if kind not in _KEYS:
        raise ConfigError(f"{source} type must be one of {', '.join(map(repr, _KEYS))}; got {kind!r}".replace("'", '"'))
    return kind


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _NAME_KEYS and value is not None}


def heeded_keys(given: Mapping[str, Any], kind: str, keys: Collection[str], source: str) -> dict[str, Any]:
    """Those of `given` that a rotation of `kind` reads, which are among `keys`; what none reads is told of and left.

    Raises:
        ConfigError: a key looks like one of `keys`, or means something to another kind of rotation.
    """
    for key in given:
        if key in keys:
            continue
        if key not in _READ_ELSEWHERE and (match := difflib.get_close_matches(key, keys, n=1, cutoff=MISSPELT)):
            raise ConfigError(f'unknown key "{key}" in {source}; did you mean "{match[0]}"?')
        if key in _READ_ELSEWHERE:
            raise ConfigError(f'{source} of type "{kind}" takes {list(keys)}, got "{key}"')
        _tell_idle(key, kind)
    return {key: value for key, value in given.items() if key in keys}


@cache
def _tell_idle(key: str, kind: str) -> None:
    logger.warning('a rotation of type "%s" does not read the key "%s", which is without effect', kind, key)


def check_number(key: str, value: Any, source: str) -> None:
    if key == "original_max_position_embeddings":
        holds, rule = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an int of at least 1"
    else:
        least = 1 if key == "factor" else 0
        holds, rule = is_number(value) and value >= least, f"a number of at least {least}"
        if key in ("beta_fast", "beta_slow"):
            holds, rule = is_number(value) and value > 0, "a number above 0"
    require(holds, f"{source} {key} must be {rule}, got {value!r}")

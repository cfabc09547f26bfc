"""MindFormers' `theta`, `extend_method` and `scaling_factor`, to and from Hugging Face's rope types; no angles here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelwright.configs.base import require
from modelwright.configs.field_types import is_number
from modelwright.configs.rope import RopeKind, RopeScaling, RopeSettings, check_rope_theta, heeded_keys
from modelwright.errors import ConfigError

EXTEND_METHODS = ("None", "PI", "NTK", "YARN", "LLAMA3", "DYNAMIC_NTK", "linear")
_ORIGINAL = "original_max_position_embeddings"
HF_DYNAMIC = "dynamic"  # transformers' own kind, which none of MindFormers' seven is

_DICT_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "LLAMA3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "YARN": (
        "factor",
        "original_max_position_embeddings",
        "beta_slow",
        "beta_fast",
        "mscale",
        "mscale_all_dim",
    ),
}
_KINDS: dict[str, RopeKind] = {"linear": "linear", "YARN": "yarn", "LLAMA3": "llama3"}
_LEAST = {"factor": 1, "mscale": -math.inf, "mscale_all_dim": 0}
_HF_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (*_DICT_KEYS["YARN"], "attention_factor", "truncate"),
    "llama3": _DICT_KEYS["LLAMA3"],
}
_HF_NAMES = ("type", "rope_type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Extension:
    """RoPE in MindFormers' words: the base `theta`, the method (one of `EXTEND_METHODS` or `dynamic`), its factor."""

    theta: float
    method: str = "None"
    factor: float | dict[str, Any] = 1.0

    def __post_init__(self) -> None:
        check_rope_theta(self.theta)
        _check_method(self.method)
        _check_factor(self.method, self.factor)

    def settings(self, dim: int, max_position_embeddings: int) -> RopeSettings:
        """What the rotary embedding is built from, for heads `dim` wide."""
        theta, context, factor = float(self.theta), max_position_embeddings, self.factor
        if isinstance(factor, dict):
            kind = _KINDS[self.method]
            numbers = {key: float(value) for key, value in factor.items() if key != _ORIGINAL}
            scaling = RopeScaling(kind, original_max_position_embeddings=factor.get(_ORIGINAL), **numbers)
            return RopeSettings(theta, dim, context, scaling)
        if self.method == "NTK":
            return RopeSettings(theta * factor, dim, context)
        scaling = {
            "None": None,
            "PI": RopeScaling("linear", float(factor)),
            "DYNAMIC_NTK": RopeScaling("dynamic_ntk", 1.0, context),
            HF_DYNAMIC: RopeScaling("dynamic", float(factor), context),
        }[self.method]
        return RopeSettings(theta, dim, context, scaling)

    def to_hugging_face(self) -> dict[str, Any]:
        """transformers' `rope_parameters` of the same rotation; DYNAMIC_NTK, which it lacks, as `dynamic_ntk`."""
        theta, factor = self.theta, self.factor
        if self.method == "NTK" and not isinstance(factor, dict):
            return {"rope_type": "default", "rope_theta": theta * factor}
        kinds = {"None": "default", "PI": "linear", "YARN": "yarn", "LLAMA3": "llama3", "DYNAMIC_NTK": "dynamic_ntk"}
        parameters = {"rope_type": kinds.get(self.method, self.method), "rope_theta": theta}
        if self.method in ("PI", HF_DYNAMIC):
            return parameters | {"factor": factor}
        if not isinstance(factor, dict):
            return parameters
        if self.method == "YARN" and not (factor["mscale"] and factor["mscale_all_dim"]):
            # transformers heeds the two only together, and takes mscale 1 and mscale_all_dim 0 otherwise
            return parameters | factor | {"attention_factor": _attention_factor(factor)}
        return parameters | factor


def read_hugging_face(
    parameters: Mapping[str, Any], theta: float, max_position_embeddings: int, source: str
) -> Extension:
    """The extension that transformers' `rope_parameters`, or the older `rope_scaling`, describe.

    Args:
        theta: the base where `parameters` name none.
        max_position_embeddings: the original context of a `yarn` that names none, as in transformers.
        source: the config's key, for errors.

    Raises:
        ConfigError: the type or a key is unknown, a key is missing, or transformers' Llama turns it otherwise than we.
    """
    kind = _hugging_face_kind(parameters, source)
    theta = parameters.get("rope_theta", theta)
    rotated_whole(parameters, f"{source} ")
    given = {key: value for key, value in parameters.items() if key not in _HF_NAMES and value is not None}
    given = heeded_keys(given, kind, _HF_KEYS[kind], source)
    if kind == "yarn":
        return Extension(theta, "YARN", _yarn(given, max_position_embeddings, source))
    for key in _HF_KEYS[kind]:
        require(key in given, f'{source} of type "{kind}" needs "{key}", got only {sorted(given)}')
    if kind == "llama3":
        return Extension(theta, "LLAMA3", given)
    methods = {"default": "None", "linear": "PI", "dynamic": HF_DYNAMIC}
    return Extension(theta, methods[kind], given.get("factor", 1.0))


def rotated_whole(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Values without a ``partial_rotary_factor`` of 1, which says nothing and transformers would write elsewhere, too.

    Raises:
        ConfigError: it is another number.
    """
    partial = values.get("partial_rotary_factor")
    require(partial in (None, 1), f"{source}partial_rotary_factor must be 1, for heads turn whole here; got {partial}")
    return {name: value for name, value in values.items() if name != "partial_rotary_factor"}


def extend_method(value: Any) -> str:
    """`value` as one of `EXTEND_METHODS`, in whatever case it is written; Python's None is `"None"`."""
    if value is None:
        return "None"
    exact = [name for name in (*EXTEND_METHODS, HF_DYNAMIC) if isinstance(value, str) and name.lower() == value.lower()]
    return exact[0] if exact else value


def _hugging_face_kind(parameters: Mapping[str, Any], source: str) -> str:
    require(isinstance(parameters, Mapping), f"{source} must be a dict or None, got {parameters!r}")
    names = {parameters[key] for key in ("type", "rope_type") if parameters.get(key) is not None}
    require(
        len(names) < 2,
        f'{source} type "{parameters.get("type")}" contradicts rope_type "{parameters.get("rope_type")}"',
    )
    given = [key for key in parameters if key not in _HF_NAMES]
    require(bool(names) or not given, f'{source} needs "rope_type" (or "type"), got only {sorted(parameters)}')
    kind = names.pop() if names else "default"
    if kind not in _HF_KEYS:
        allowed = ", ".join(f'"{name}"' for name in _HF_KEYS)
        raise ConfigError(f'{source} type must be one of {allowed}; got "{kind}"')
    return kind


def _yarn(given: dict[str, Any], max_position_embeddings: int, source: str) -> dict[str, Any]:
    """MindFormers' six keys from transformers', whose `attention_factor` says `mscale` in another way."""
    truncate = given.pop("truncate", True)
    require(truncate is True, f"{source} truncate must be True, as the ramp runs between whole pairs; got {truncate}")
    require("factor" in given, f'{source} of type "yarn" needs "factor", got only {sorted(given)}')
    weight = given.pop("attention_factor", None)
    if not (given.get("mscale") and given.get("mscale_all_dim")) and weight is None:
        given |= {"mscale": 1.0, "mscale_all_dim": 0.0}
    values = {
        "original_max_position_embeddings": max_position_embeddings,
        "beta_slow": 1.0,
        "beta_fast": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    } | given
    if weight is not None and not math.isclose(weight, _attention_factor(values), rel_tol=1e-12):
        factor = values["factor"]
        require(
            factor > 1, f"{source} attention_factor ({weight}) must be 1 where factor is 1, as nothing is stretched"
        )
        values |= {"mscale": (weight - 1) / (0.1 * math.log(factor)), "mscale_all_dim": 0.0}
    return values


def _attention_factor(factor: Mapping[str, Any]) -> float:
    """What YaRN multiplies cosines and sines by: `0.1 m ln(s) + 1` of `mscale` over that of `mscale_all_dim`."""
    grow = 0.1 * math.log(max(factor["factor"], 1))
    return (grow * factor["mscale"] + 1) / (grow * factor["mscale_all_dim"] + 1)


def _check_method(method: Any) -> None:
    if method not in (*EXTEND_METHODS, HF_DYNAMIC):
        raise ConfigError(f"extend_method must be one of {', '.join(EXTEND_METHODS)}; got {method!r}")


def _check_factor(method: str, factor: Any) -> None:
    if method not in _DICT_KEYS:
        require(is_number(factor), f'scaling_factor of extend_method "{method}" must be a number, got {factor!r}')
        require(factor > 0, f"scaling_factor must be above 0, got {factor}")
        used = method not in ("None", "DYNAMIC_NTK")
        require(used or factor == 1, f'scaling_factor ({factor}) says nothing with extend_method "{method}": must be 1')
        least = 1 if method == HF_DYNAMIC else 0
        require(factor >= least, f"rope factor must be at least {least}, got {factor}")
        return
    keys = _DICT_KEYS[method]
    rule = f'scaling_factor of extend_method "{method}" must be a dict with {", ".join(keys)}'
    require(isinstance(factor, dict), f"{rule}; got {factor!r}")
    missing = [key for key in keys if key not in factor]
    require(not missing, f"{rule}; {', '.join(missing)} is missing")
    unknown = [str(key) for key in factor if key not in keys]
    require(not unknown, f"{rule}; it does not take {', '.join(unknown)}")
    for key, value in factor.items():
        _check_entry(key, value)
    _check_order(factor, "beta_slow", "beta_fast")
    _check_order(factor, "low_freq_factor", "high_freq_factor")


def _check_entry(key: str, value: Any) -> None:
    if key == _ORIGINAL:
        holds, rule = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an int of at least 1"
    elif key in _LEAST:
        holds, rule = is_number(value) and value >= _LEAST[key], f"a number of at least {_LEAST[key]}"
    else:
        holds, rule = is_number(value) and value > 0, "a number above 0"
    require(holds, f"scaling_factor {key} must be {rule}, got {value!r}")


def _check_order(factor: dict[str, Any], low: str, high: str) -> None:
    if low in factor:
        require(
            factor[high] > factor[low],
            f"scaling_factor {high} ({factor[high]}) must be greater than {low} ({factor[low]})",
        )

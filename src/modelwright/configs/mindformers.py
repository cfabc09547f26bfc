"""MindFormers' YAML files: which of a run config's sections overrides which, both ways; it knows no family's fields."""

import copy
from collections.abc import Mapping
from typing import Any

from modelwright.configs.base import require

MODEL_TYPE = "LlamaConfig"
ARCHITECTURE = "LlamaForCausalLM"
_INSIDE_PARALLEL = {"recompute_config": "recompute", "swap_config": "swap"}
_BATCH_SIZES = ("mini_batch_size", "batch_size")
_SWITCHES = ("enable_parallel_optimizer", "gradient_accumulation_shard", "gradient_accumulation_steps")
"""Fields of a config that stand in other sections of a run."""


def merge_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the model's config in a run config, after what its other sections override.

    `model.model_config` speaks first. A top-level `parallel_config` or `moe_config` replaces the one in it;
    `recompute_config` and `swap_config` replace `recompute` and `swap` of whichever `parallel_config` holds;
    `calculate_per_token_loss` and `runner_config`'s batch size replace the fields of those names. `parallel` says
    whether optimizer states and accumulated gradients are sharded, and `runner_config` how many micro-batches
    accumulate. A section that is absent overrides nothing.

    Raises:
        ConfigError: there is no `model.model_config`, a section is no mapping, or the model is no Llama.
    """
    values = dict(_section(_section(run, "model"), "model_config", "model."))
    kind = values.pop("type", MODEL_TYPE)
    require(bool(values), "a MindFormers config needs model.model_config, and this one has none")
    require(kind == MODEL_TYPE, f'model.model_config type must be "{MODEL_TYPE}", got "{kind}"')
    for name in ("parallel_config", "moe_config"):
        if run.get(name) is not None:
            values[name] = dict(_section(run, name))
    for name, inside in _INSIDE_PARALLEL.items():
        if run.get(name) is not None:
            values["parallel_config"] = (values.get("parallel_config") or {}) | {inside: dict(_section(run, name))}
    if run.get("calculate_per_token_loss") is not None:
        values["calculate_per_token_loss"] = run["calculate_per_token_loss"]
    sizes = [size for key in _BATCH_SIZES if (size := _section(run, "runner_config").get(key)) is not None]
    if sizes:
        values["batch_size"] = sizes[0]
    parallel = _section(run, "parallel")
    sharding = _section(parallel, "parallel_optimizer_config", "parallel.")
    switches = {
        "enable_parallel_optimizer": parallel.get("enable_parallel_optimizer"),
        "gradient_accumulation_shard": sharding.get("gradient_accumulation_shard"),
        "gradient_accumulation_steps": _section(run, "runner_config").get("gradient_accumulation_steps"),
    }
    return values | {name: value for name, value in switches.items() if value is not None}


def to_run(values: Mapping[str, Any], rest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The run config whose `merge_run` gives `values` back; `parallel_config` and `moe_config` are dicts.

    `rest` are the other sections of the run that the values were read from.
    """
    sections = ("parallel_config", "moe_config", *_SWITCHES)
    model = {"type": MODEL_TYPE} | {key: value for key, value in values.items() if key not in sections}
    parallel = dict(values["parallel_config"])
    inside = {name: parallel.pop(key) for name, key in _INSIDE_PARALLEL.items()}
    run = {
        "model": {"model_config": model, "arch": {"type": ARCHITECTURE}},
        "parallel_config": parallel,
        **inside,
        "moe_config": dict(values["moe_config"]),
        "calculate_per_token_loss": values["calculate_per_token_loss"],
    }
    return copy.deepcopy({**dict(rest or {}), **run}) | _with_switches(values, dict(rest or {}))


def _with_switches(values: Mapping[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The sections of the run that hold single values of a config, with the rest of what they held."""
    runner = {key: value for key, value in (rest.get("runner_config") or {}).items() if key not in _BATCH_SIZES}
    runner = {"batch_size": values["batch_size"]} | runner
    if values.get("gradient_accumulation_steps") is not None:
        runner["gradient_accumulation_steps"] = values["gradient_accumulation_steps"]
    parallel = copy.deepcopy(dict(rest.get("parallel") or {}))
    if (switch := values.get("enable_parallel_optimizer")) is not None:
        parallel["enable_parallel_optimizer"] = switch
    if (shard := values.get("gradient_accumulation_shard")) is not None:
        inside = dict(parallel.get("parallel_optimizer_config") or {})
        parallel["parallel_optimizer_config"] = inside | {"gradient_accumulation_shard": shard}
    return {"runner_config": runner} | ({"parallel": parallel} if parallel else {})


def _section(run: Mapping[str, Any], name: str, within: str = "") -> Mapping[str, Any]:
    section = run.get(name)
    require(section is None or isinstance(section, Mapping), f"{within}{name} must be a mapping, got {section!r}")
    return section or {}

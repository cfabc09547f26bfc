"""What a MindFormers run computes again or moves to the host, as numbers of layers and names of operations."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from modelwright.configs.parallel import ParallelConfig, SwapConfig, stage_layers
from modelwright.configs.run.mindformers.reader import Reader
from modelwright.errors import ConfigError

MATRICES = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
PROJECTIONS = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
OPERATIONS: Mapping[str, str] = {
    "feed_forward.mul": "feed_forward.product",
    "feed_forward.w1.activation.silu": "feed_forward.activation",
    **dict.fromkeys(MATRICES, "feed_forward"),
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "attention.flash_attention": "attention.core",
    **dict.fromkeys(PROJECTIONS, "attention"),
}
"""MindFormers' names of the operations of a layer, and ours that is computed again or moved for them."""
DEFAULT = ("feed_forward.mul", "feed_forward.w1.activation.silu")
"""What `select_recompute: True` means, and a list of counts."""
RESHAPES = "a reshape keeps nothing on torch, so there is nothing to compute again"


def read_activations(reader: Reader, model: Mapping[str, Any]) -> None:
    """`recompute_config` and `swap_config`, which `merge_run` has put into the model's `parallel_config`."""
    degrees = ParallelConfig.read_file(model.get("parallel_config"), "parallel_config")
    layers = int(model.get("num_layers", model.get("num_hidden_layers", 32)))
    virtual = int(model.get("pp_interleave_num") or 1)
    table = stage_layers(layers, degrees.pipeline_stage, virtual, model.get("offset") or 0)
    _read_recompute(reader, degrees, table)
    _read_swap(reader, degrees.swap, layers)


def leading(counts: Any, table: tuple[tuple[int, ...], ...], name: str) -> tuple[int, ...]:
    """The numbers of the layers that a bool, or counts of leading layers of each stage, name.

    Args:
        counts: True, False, one count for each stage, or such a list for each virtual stage.
        table: layers of each stage, `[virtual stages][stages]`.
    """
    total = sum(map(sum, table))
    if isinstance(counts, bool):
        return tuple(range(total)) if counts else ()
    rows = counts if counts and isinstance(counts[0], list) else [counts] * len(table)
    stages = len(table[0])
    if len(rows) != len(table) or any(len(row) != stages for row in rows):
        raise ConfigError(
            f"{name} must be a bool, {stages} counts (pipeline_stage) or {len(table)} such lists (pp_interleave_num), "
            f"got {counts}"
        )
    found: list[int] = []
    begin = 0
    for row, sizes in zip(rows, table, strict=True):
        for count, size in zip(row, sizes, strict=True):
            found.extend(range(begin, begin + min(count, size)))
            begin += size
    return tuple(found)


def _read_recompute(reader: Reader, degrees: ParallelConfig, table: tuple[tuple[int, ...], ...]) -> None:
    said = degrees.recompute
    whole = leading(said.recompute, table, "recompute")
    total = sum(map(sum, table))
    selected = dict(_selected(reader, said.select_recompute, table, "select_recompute"))
    for operation, excluded in _selected(reader, said.select_recompute_exclude, table, "select_recompute_exclude"):
        kept = [number for number in selected.get(operation, ()) if number not in excluded]
        selected[operation] = tuple(kept)
    selected = {name: left for name, numbers in selected.items() if (left := _without(numbers, whole))}
    if whole == tuple(range(total)):
        reader.put("recompute", "full")
    elif whole or selected:
        reader.put("recompute", {"layers": list(whole), "operations": {k: list(v) for k, v in selected.items()}})
    else:
        reader.put("recompute", "none")


def _without(numbers: Iterable[int], others: Iterable[int]) -> tuple[int, ...]:
    return tuple(number for number in numbers if number not in set(others))


def _selected(
    reader: Reader, said: Any, table: tuple[tuple[int, ...], ...], name: str
) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Each operation that a selection names, with the numbers of its layers."""
    if isinstance(said, Mapping):
        patterns = dict(said)
    elif isinstance(said, list) and said and all(isinstance(each, str) for each in said):
        patterns = dict.fromkeys(said, True)
    else:
        patterns = dict.fromkeys(DEFAULT, said)
    found: dict[str, tuple[int, ...]] = {}
    for pattern, counts in patterns.items():
        numbers = leading(counts, table, f'{name} "{pattern}"')
        matches = _matches(reader, str(pattern), name, "recompute")
        for operation in dict.fromkeys(OPERATIONS[each] for each in matches):
            found[operation] = tuple(sorted({*found.get(operation, ()), *numbers}))
    return found.items()


def _matches(reader: Reader, pattern: str, name: str, key: str) -> tuple[str, ...]:
    """MindFormers' names that a pattern means; a refusal where there are none."""
    try:
        matches = [each for each in OPERATIONS if re.search(f"(?:{pattern})$", each)]
        shapes = [each for each in OPERATIONS if re.search(f"(?:{pattern})$", f"{each}.reshape")]
    except re.error:
        matches, shapes = [], []
    if not matches and shapes:
        reader.idle[f"recompute_config.{name}.{pattern}"] = RESHAPES
    elif not matches:
        known = ", ".join(OPERATIONS)
        reader.refuse(f'{name} pattern "{pattern}" matches no operation of a layer; there are {known}', key)
    return tuple(matches)


def _read_swap(reader: Reader, said: SwapConfig, layers: int) -> None:
    if not said.swap:
        reader.put("swap", None)
        return
    whole = {number for each in _entries(said.layer_swap) for number in _numbers(each.get("layers", True), layers)}
    operations: dict[str, tuple[int, ...]] = {}
    for pattern, numbers in _swapped_operations(said.op_swap, layers):
        for each in _matches(reader, pattern, "op_swap", "swap"):
            operations[OPERATIONS[each]] = tuple(sorted({*operations.get(OPERATIONS[each], ()), *numbers}))
    if not said.layer_swap and not said.op_swap:
        operations = {"attention.core": tuple(range(layers))}
    alone = {name: left for name, numbers in operations.items() if (left := list(_without(numbers, whole)))}
    reader.put("swap", {"prefetch": _prefetch(said), "layers": sorted(whole), "operations": alone})


def _entries(said: Any) -> list[Mapping[str, Any]]:
    listed = [said] if isinstance(said, Mapping) else said or []
    return [each if isinstance(each, Mapping) else {"op_name": each, "layers": True} for each in listed]


def _numbers(said: Any, layers: int) -> tuple[int, ...]:
    """The numbers of the layers that an entry names: True for all, numbers, or lists of them by stage."""
    if said is None or said is True:
        return tuple(range(layers))
    flat = said if isinstance(said, list) else [said] if said else []
    return tuple(number for each in flat for number in (each if isinstance(each, list) else [each]) if number < layers)


def _swapped_operations(said: Any, layers: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Each pattern of `op_swap`, a list of entries with an `op_name` or a mapping of patterns, with its layers."""
    if isinstance(said, Mapping) and "op_name" not in said:
        for pattern, entries in said.items():
            for each in _entries(entries):
                yield str(pattern), _numbers(each.get("layers", True), layers)
        return
    for each in _entries(said):
        yield str(each.get("op_name", ".*")), _numbers(each.get("layers", True), layers)


def _prefetch(said: SwapConfig) -> int:
    """The largest number of layers ahead that an entry asks for, or the default."""
    asked = [each.get("backward_prefetch") for each in _entries(said.layer_swap)]
    return max([said.default_prefetch, *(each for each in asked if isinstance(each, int))])

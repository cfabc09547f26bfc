"""The headers of a folder that another program has quantized, as those of the weights that it was made from.

Parts that stand together for a weight become one header that makes the weight when it is read. Leaves out how each
program stores them (the files beside this one), and whether a model reads a weight at all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelwright.checkpoints.foreign.bitsandbytes import STATES, read_eight_bits, read_four_bits
from modelwright.checkpoints.foreign.integers import read_autoround, read_awq, read_gptq, read_mlx
from modelwright.checkpoints.foreign.parts import Format, Parts
from modelwright.checkpoints.foreign.scaled import OF_ACTIVATIONS, OF_CACHES, read_packed, read_scaled
from modelwright.checkpoints.shards import TensorHeader
from modelwright.checkpoints.source import read_json
from modelwright.configs.quantization import BESIDE, foreign_quantization, program_of

_OURS = frozenset({"quant_config", "quantization_config"})
_PASSED_OVER = (*OF_ACTIVATIONS, *OF_CACHES)
_SCALED = Format("weight_scale", ("weight", "weight_zero_point", "weight_scale_2", *OF_ACTIVATIONS), read_scaled)
_FORMATS: Mapping[str, Sequence[Format]] = {
    "auto-round": [Format("qweight", ("qzeros", "scales", "g_idx"), read_autoround)],
    "awq": [Format("qweight", ("qzeros", "scales"), read_awq)],
    "bitsandbytes": [
        Format(
            "weight.absmax",
            ("weight", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", *STATES),
            read_four_bits,
        ),
        Format("SCB", ("weight", "weight_format"), read_eight_bits),
    ],
    "compressed-tensors": [
        Format(
            "weight_packed",
            ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale", *_PASSED_OVER),
            read_packed,
        ),
        _SCALED,
    ],
    "fbgemm_fp8": [_SCALED],
    "fp8": [Format("weight_scale_inv", ("weight", *OF_ACTIVATIONS), read_scaled), _SCALED],
    "gptq": [Format("qweight", ("qzeros", "scales", "g_idx"), read_gptq)],
    "mlx": [Format("scales", ("weight", "biases"), read_mlx)],
    "modelopt": [_SCALED],
}


def as_numbers(folder: Path, found: dict[str, TensorHeader]) -> dict[str, TensorHeader]:
    """The headers in ``folder``, with one for each weight that a known program has quantized in place of its parts.

    They are ``found`` itself where nobody says so, where the program is not known, or where nothing is stored its way.

    Raises:
        CheckpointError: a weight cannot be made of its parts.
    """
    section = _section(folder)
    known = section is not None and not section.get("transform_config")  # rotations of rows while a model runs
    formats = _FORMATS.get(program_of(section), ()) if known else ()
    made: dict[str, TensorHeader] = {}
    taken: set[str] = set()
    for each in formats:
        for name in found:
            module = name.removesuffix(f".{each.known_by}")
            if module != name and f"{module}.weight" not in made:
                headers = {part: found[f"{module}.{part}"] for part in each.parts if f"{module}.{part}" in found}
                made[f"{module}.weight"] = _header(each, Parts(f"{module}.weight", headers, section or {}))
                taken |= {header.name for header in headers.values()}
    if not made:
        return found
    endings = tuple(f".{each}" for each in _PASSED_OVER)
    left = {name: header for name, header in found.items() if name not in taken and not name.endswith(endings)}
    return left | made


def _header(each: Format, parts: Parts) -> TensorHeader:
    plain, first = each.read(parts), parts.headers[each.known_by]
    return TensorHeader(parts.name, first.shard, plain.shape, "F32", first.start, plain.make, in_blocks=True)


def _section(folder: Path) -> Mapping[str, Any] | None:
    """What the folder says of how its weights are stored; None where that is nothing, or our own."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not _OURS.isdisjoint(config) or foreign_quantization(config) is not None:
        said = foreign_quantization(config)
        return said if isinstance(said, Mapping) else None
    for name, program in BESIDE.items():
        if (folder / name).is_file():
            return {"quant_method": program} | read_json(folder / name)
    return None

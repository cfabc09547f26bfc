"""The `quantization_config` of other programs as what their weights take; none of them is run here.

Sources: the quantizers of transformers 5, compressed-tensors' and modelopt's schemes, and what AutoAWQ, GPTQModel,
bitsandbytes, HQQ, AQLM, EETQ, quanto, torchao, FBGEMM and HIGGS write into files: packed numbers, scales, offsets.
"""

from collections.abc import Callable, Mapping
from typing import Any

from modelwright.configs.quantization import program_of
from modelwright.planner.stored import Matches, StoredWeights, WeightFormat, everything, named

HEAD = "lm_head"
FLOAT32, HALF, BYTE = 4, 2, 1
LARGEST_BITS = 32


class _Unclear(Exception):
    """A section does not say what its method needs said."""


def read_foreign(value: Any) -> StoredWeights:
    """What a section of another program, a dict or one of transformers' objects, says of a model's weights.

    What cannot be understood is told in `unknown`; then weights count as the type that the config states.
    """
    section: Mapping[str, Any] = value if isinstance(value, Mapping) else value.to_dict()
    method = program_of(section)
    reader = _READERS.get(method)
    if reader is None:
        told = f'quant_method "{method}" is not known, so weights are counted in the type stated'
        return StoredWeights(method, (), named([]), (told,))
    try:
        return reader(method, section)
    except (_Unclear, AttributeError, TypeError, ValueError) as error:
        told = f'quant_method "{method}" is not understood ({error}), so weights are counted in the type stated'
        return StoredWeights(method, (), named([]), (told,))


def _one(method: str, kind: WeightFormat, left_out: Matches, *unknown: str, kv: str | None = None) -> StoredWeights:
    return StoredWeights(method, ((everything, kind),), left_out, unknown, kv)


def _left_out(section: Mapping[str, Any], *keys: str, head: bool = False) -> Matches:
    """The modules that a section names under the first of `keys` it has; those, or none, and with `head` the head.

    Where it names none at all, the head is left out, as transformers does.
    """
    given = next((section[key] for key in keys or _KEYS if section.get(key) is not None), None)
    names = _names(given)
    return named([*names, HEAD] if head or given is None else names)


_KEYS = ("modules_to_not_convert",)


def _names(given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else list(given or [])
    if not all(isinstance(name, str) for name in names):
        raise _Unclear(f"modules left out must be names, got {given!r:.80}")
    return names


def _number(section: Mapping[str, Any], name: str, default: int | None = None, most: int = 2**20) -> int:
    value = section.get(name)
    value = default if value is None else value
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if not whole or value is None or not -1 <= value <= most or value == 0:
        raise _Unclear(f"{name} must be a number from 1 to {most}, got {value!r:.40}")
    return int(value)


def _bits(section: Mapping[str, Any], name: str, default: int | None = None) -> int:
    return _number(section, name, default, LARGEST_BITS)


def _group(section: Mapping[str, Any], default: int | None = 128) -> int | None:
    """Inputs that share a scale; None where -1 says all."""
    group = _number(section, "group_size", default)
    return None if group == -1 else group


def _awq(method: str, section: Mapping[str, Any]) -> StoredWeights:
    bits = _bits(section, "bits" if "bits" in section else "w_bit", 4)
    group = _group({**section} | {"group_size": section.get("group_size", section.get("q_group_size"))})
    kind = WeightFormat(bits, (1, group), scale=HALF, offset=bits / 8)  # the packed offsets are always there
    return _one(method, kind, _left_out(section, head=True))


def _gptq(method: str, section: Mapping[str, Any]) -> StoredWeights:
    bits = _bits(section, "bits")
    kind = WeightFormat(bits, (1, _group(section)), scale=HALF, offset=bits / 8, each_input=FLOAT32)  # g_idx is int32
    unknown = ('"dynamic" rules of single modules are not read',) if section.get("dynamic") else ()
    chosen = section.get("modules_in_block_to_quantize") or []
    inside = [name for row in chosen for name in (row if isinstance(row, list) else [row])]
    head = [] if section.get("lm_head") is True else [HEAD]
    named_out = named([*head, *_names(section.get("modules_to_not_convert"))])
    if not inside:
        return _one(method, kind, named_out, *unknown)
    ends = tuple(f".{name}" for name in _names(inside))
    return StoredWeights(method, ((lambda name: name.endswith(ends), kind),), named_out, unknown)


def _autoround(method: str, section: Mapping[str, Any]) -> StoredWeights:
    unknown = ('"extra_config" of single modules is not read',) if section.get("extra_config") else ()
    bits = _bits(section, "bits", 4)
    kind = WeightFormat(bits, (1, _group(section)), scale=HALF, offset=bits / 8)
    return _one(method, kind, _left_out(section, head=True), *unknown)


def _bitsandbytes(method: str, section: Mapping[str, Any]) -> StoredWeights:
    left_out = _left_out(section, "llm_int8_skip_modules", "modules_to_not_convert")
    if section.get("load_in_4bit") or section.get("_load_in_4bit"):
        nested = bool(section.get("bnb_4bit_use_double_quant"))
        scale = BYTE + FLOAT32 / 256 if nested else FLOAT32  # absmax of 64 numbers, itself of 8 bits in blocks of 256
        kind = WeightFormat(4, (1, 64), scale=scale, each=16 * FLOAT32 + nested * (256 + 1) * FLOAT32)
        return _one(method, kind, left_out)
    if not (section.get("load_in_8bit") or section.get("_load_in_8bit")):
        raise _Unclear("neither load_in_8bit nor load_in_4bit is true")
    return _one(method, WeightFormat(8, scale=FLOAT32), left_out)


def _fp8(method: str, section: Mapping[str, Any]) -> StoredWeights:
    size = section.get("weight_block_size", (128, 128) if method in ("fp8", "mxfp8") else None)
    block = (None, None) if size is None else tuple(size)
    if len(block) != 2 or not all(each is None or (isinstance(each, int) and each > 0) for each in block):
        raise _Unclear(f"weight_block_size must be two numbers, got {size!r:.40}")
    scale = BYTE if method == "mxfp8" or section.get("scale_fmt") == "ue8m0" else FLOAT32
    static = section.get("activation_scheme") == "static"
    kind = WeightFormat(8, (1, 32) if method == "mxfp8" else block, scale=scale, each=FLOAT32 * static)
    return _one(method, kind, _left_out(section, "modules_to_not_convert", "ignored_layers"))


def _per_output(bits: int, scale: int, default_out: bool = False) -> Callable[[str, Mapping[str, Any]], StoredWeights]:
    kind = WeightFormat(bits, scale=scale)
    return lambda method, section: _one(method, kind, _left_out(section, head=default_out))


def _compressed(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """compressed-tensors' groups of modules, each with a scheme of its weights."""
    groups, unknown = [], []
    schemes = section.get("config_groups") or {}
    for scheme in schemes.values():
        weights = scheme.get("weights")
        if weights is not None:
            kind = _scheme(weights, str(scheme.get("format") or section.get("format") or ""))
            groups.append((named(_names(scheme.get("targets") or ["Linear"]), exact=True), kind))
    sparse = (section.get("sparsity_config") or {}).get("format")
    if sparse not in (None, "dense"):
        unknown.append(f'what sparsity_config of format "{sparse}" leaves out is counted')
    if not groups and sparse in (None, "dense"):
        unknown.append("no group quantizes weights")
    cached = section.get("kv_cache_scheme")
    kv = None if not cached else "fp8" if cached.get("type") == "float" else "int8"
    ignored = named(_names(section.get("ignore")), exact=True)
    return StoredWeights(method, tuple(groups), ignored, tuple(unknown), kv)


def _scheme(weights: Mapping[str, Any], form: str) -> WeightFormat:
    bits, strategy = _bits(weights, "num_bits"), weights.get("strategy")
    symmetric = weights.get("symmetric", True)
    packed = weights.get("type", "int") == "int" and "pack" in form
    offset = 0 if symmetric else bits / 8 if packed else BYTE
    indexed = FLOAT32 if weights.get("actorder") in ("group", True) else 0
    if "nvfp4" in form or "mxfp4" in form:
        group = _number(weights, "group_size", 16 if "nvfp4" in form else 32)
        return WeightFormat(bits, (1, group), scale=BYTE, each=2 * FLOAT32 if "nvfp4" in form else 0)
    if strategy == "tensor":
        return WeightFormat(bits, (None, None), offset=offset)
    if strategy == "block":
        block = weights.get("block_structure") or (128, 128)
        tall, wide = (int(each) for each in block)
        return WeightFormat(bits, (tall, wide), scale=FLOAT32, offset=offset)
    if strategy in ("group", "tensor_group") or (strategy is None and weights.get("group_size")):
        return WeightFormat(bits, (1, _group(weights)), offset=offset, each_input=indexed)
    if strategy not in (None, "channel"):
        raise _Unclear(f"strategy must be tensor, channel, group or block, got {strategy!r:.40}")
    return WeightFormat(bits, offset=offset, each=16 * packed)


def _hqq(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """HQQ: a scale and an offset in half precision for each group, and other numbers for single layers by their tag."""
    said = section.get("quant_config") or section
    out = named(_names(section.get("skip_modules", [HEAD])))
    if "weight_quant_params" in said or "nbits" in said:
        return _one(method, _hqq_kind(said), out)
    tags = [(named([f".*{tag}"]), _hqq_kind(each)) for tag, each in said.items() if isinstance(each, Mapping)]
    if not tags:
        raise _Unclear("quant_config says neither weight_quant_params nor layers")
    return StoredWeights(method, tuple(tags), out)


def _hqq_kind(said: Mapping[str, Any]) -> WeightFormat:
    weights = said.get("weight_quant_params", said)
    return WeightFormat(_bits(weights, "nbits", 4), (1, _group(weights, 64)), scale=HALF, offset=HALF)


def _aqlm(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """AQLM (arXiv:2401.06118): codes of additive codebooks for groups of `out_group_size` x `in_group_size`."""
    tall, wide = _number(section, "out_group_size", 1), _number(section, "in_group_size", 8)
    books, bits = _number(section, "num_codebooks", 1), _bits(section, "nbits_per_codebook", 16)
    stored = next(width for width in (8, 16, 32) if width >= bits)  # codes are whole integers
    entries = HALF * books * 2**bits * tall * wide
    kind = WeightFormat(books * stored / (tall * wide), scale=HALF / tall, each=entries)
    return _one(method, kind, _left_out(section, "linear_weights_not_to_quantize", head=True))


def _quanto(method: str, section: Mapping[str, Any]) -> StoredWeights:
    name = str(section.get("weights", "int8"))
    kinds = {
        "int8": WeightFormat(8),
        "float8": WeightFormat(8),
        "int4": WeightFormat(4, (1, 128), offset=HALF),
        "int2": WeightFormat(2, (1, 128), offset=HALF),
    }
    if name not in kinds:
        raise _Unclear(f"weights must be one of {', '.join(kinds)}, got {name!r:.40}")
    return _one(method, kinds[name], _left_out(section))


def _torchao(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """torchao, whose type is a name or, as it is written since, the class of a config and its arguments."""
    said = section.get("quant_type")
    values: Mapping[str, Any] = section.get("quant_type_kwargs") or {}
    unknown = ()
    if isinstance(said, Mapping):
        inside = said.get("default", said)
        said, values = inside.get("_type", inside.get("type", "")), inside.get("_data", inside)
        if said == "FqnToConfig" or "module_fqn_to_config" in values:
            raise _Unclear("modules with configs of their own")
    name = str(said).lower().replace("_", "").removesuffix("config")
    group = values.get("group_size")
    if "int4weightonly" in name or "int8dynamicactivationint4weight" in name:
        group = _number({"group_size": group}, "group_size", 32 if "int8dynamic" in name else 128)
        return _one(method, WeightFormat(4, (1, group), offset=HALF), _left_out(section), *unknown)
    if "int8" in name and "int4" not in name:
        return _one(method, WeightFormat(8), _left_out(section), *unknown)
    if "float8" in name or "fp8" in name:
        return _one(method, WeightFormat(8, scale=FLOAT32), _left_out(section), *unknown)
    if "mx" in name or "nvfp4" in name:
        block = 16 if "nvfp4" in name else 32
        bits = 8 if "float8" in str(values).lower() or "mxfp8" in name else 4
        return _one(method, WeightFormat(bits, (1, block), scale=BYTE), _left_out(section), *unknown)
    raise _Unclear(f"quant_type {said!r:.60}")


def _microscaled(block: int, each: int = 0) -> Callable[[str, Mapping[str, Any]], StoredWeights]:
    """4-bit floats with a scale of one byte for each block (OCP Microscaling Formats; NVFP4)."""
    return lambda method, section: _one(method, WeightFormat(4, (1, block), scale=BYTE, each=each), _left_out(section))


def _fouroversix(method: str, section: Mapping[str, Any]) -> StoredWeights:
    block = 32 if "mxfp4" in str(section.get("weight_dtype") or section.get("dtype", "")) else 16
    return _microscaled(block, FLOAT32)(method, section)


def _fp_quant(method: str, section: Mapping[str, Any]) -> StoredWeights:
    return _microscaled(32 if section.get("forward_dtype") == "mxfp4" else 16, FLOAT32)(method, section)


def _grouped(
    bits: str, default_bits: int, group: int, *, offset: float = HALF
) -> Callable[[str, Mapping[str, Any]], StoredWeights]:
    """Numbers of so many bits with a scale, and an offset of `offset` bytes, for each group of inputs."""

    def read(method: str, section: Mapping[str, Any]) -> StoredWeights:
        kind = WeightFormat(_bits(section, bits, default_bits), (1, _group(section, group)), offset=offset)
        return _one(method, kind, _left_out(section))

    return read


def _bitnet(method: str, section: Mapping[str, Any]) -> StoredWeights:
    return _one(method, WeightFormat(2, (None, None)), _left_out(section))


def _modelopt(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """NVIDIA's, whose newer files hold compressed-tensors' groups beside the name of the algorithm."""
    said = section.get("quantization") or section
    algorithm = str(said.get("quant_algo", "")).upper()
    kinds = {
        "FP8": WeightFormat(8, (None, None), scale=FLOAT32, each=FLOAT32),
        "FP8_PB_WO": WeightFormat(8, (128, 128), scale=FLOAT32),
        "NVFP4": WeightFormat(4, (1, 16), scale=BYTE, each=2 * FLOAT32),
        "W4A16_AWQ": WeightFormat(4, (1, said.get("group_size") or 128), scale=HALF),
        "W4A8_AWQ": WeightFormat(4, (1, said.get("group_size") or 128), scale=HALF),
    }
    if algorithm not in kinds:
        raise _Unclear(f"quant_algo must be one of {', '.join(kinds)}, got {algorithm!r:.40}")
    given = said.get("ignore", said.get("exclude_modules"))
    ignored = [name.replace(".", r"\.").replace("*", ".*") for name in _names([HEAD] if given is None else given)]
    cached = said.get("kv_cache_quant_algo") or ("FP8" if said.get("kv_cache_scheme") else None)
    return _one(method, kinds[algorithm], named(ignored), kv="fp8" if cached == "FP8" else None)


def _mindformers(method: str, section: Mapping[str, Any]) -> StoredWeights:
    """MindFormers' `rtn`, `smooth_quant` and `ptq`: integers with a scale for each output, or for each group."""
    said = {key: None if value == "None" else value for key, value in section.items()}
    bits = {"int8": 8, "int4": 4, None: None}.get(said.get("weight_dtype"), 0)
    if bits == 0:
        raise _Unclear(f"weight_dtype must be int8 or int4, got {said.get('weight_dtype')!r:.40}")
    kv = "int8" if said.get("kvcache_dtype") == "int8" else None
    out = _left_out(said)
    if bits is None:
        return StoredWeights(method, (), out, (), kv)
    group = said.get("group_size") or None
    smooth = HALF if said.get("outliers_suppression") or said.get("activation_dtype") else 0
    return _one(method, WeightFormat(bits, (1, group), scale=FLOAT32, offset=HALF, each_input=smooth), out, kv=kv)


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], StoredWeights]] = {
    "aqlm": _aqlm,
    "auto-round": _autoround,
    "awq": _awq,
    "bitnet": _bitnet,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "eetq": _per_output(8, HALF),
    "fbgemm_fp8": _per_output(8, FLOAT32),
    "fouroversix": _fouroversix,
    "fp8": _fp8,
    "fp_quant": _fp_quant,
    "gptq": _gptq,
    "higgs": _grouped("bits", 4, 256, offset=0),
    "hqq": _hqq,
    "metal": _grouped("bits", 4, 64),
    "mlx": _grouped("bits", 4, 64),
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _microscaled(32),
    "mxfp8": _fp8,
    "nvfp4": _microscaled(16, 2 * FLOAT32),
    "ptq": _mindformers,
    "quanto": _quanto,
    "rtn": _mindformers,
    "sinq": _grouped("nbits", 4, 64),
    "smooth_quant": _mindformers,
    "torchao": _torchao,
}
"""The programs whose sections are understood; vptq, spqr, quark, gguf and others are said to be unknown."""

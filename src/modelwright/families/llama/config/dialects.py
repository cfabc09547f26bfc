"""The reading of a Llama config's two vocabularies into one set of names; it knows no rule between values.

Names of both vocabularies are read in either dialect. The `dialect` decides one thing only: whose defaults stand for
what is left out, Hugging Face's or those of MindFormers' documentation.
"""

from collections.abc import Mapping
from typing import Any

from modelwright.configs.base import require, require_one_of
from modelwright.configs.field_types import dtype_name, is_number
from modelwright.configs.moe import MoEConfig
from modelwright.configs.quantization import is_transformers_quantization
from modelwright.configs.rope_extensions import Extension, extend_method, read_hugging_face
from modelwright.families.llama.config.names import (
    ALIASES,
    DIALECTS,
    DOUBLE,
    DTYPE_FIELDS,
    DTYPES,
    HUGGING_FACE,
    HUGGING_FACE_DEFAULTS,
    KIN,
    KIN_DEFAULTS,
    MINDFORMERS,
    MINDFORMERS_FIELDS,
    MIXTRAL,
    NO_KIN,
    NONE_MEANS,
    PLAIN_DEFAULTS,
    ROPE_VIEWS,
)

WINDOW = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
"""What Mistral and Qwen2 say of attention to a window."""


def dialect_of(values: Mapping[str, Any]) -> str:
    """The dialect that a file's `values` are in.

    It is the one they state under `dialect`, as our own files do. Without it a file that MindFormers has stamped with
    its `mindformers_version` is MindFormers', and every other Hugging Face's.
    """
    stamped = values.get("mindformers_version") is not None
    return values.get("dialect") or (MINDFORMERS if stamped else HUGGING_FACE)


def speaks_mindformers(values: Mapping[str, Any]) -> bool:
    """Whether `values` use MindFormers' name for a thing that both name."""
    return not values.keys().isdisjoint(ALIASES)


def canonical(values: dict[str, Any]) -> dict[str, Any]:
    """`values` under this config's own names, RoPE apart (see `merge_rope`).

    Raises:
        ConfigError: two names of one thing have different values.
    """
    values = dict(values)
    for alias, name in ALIASES.items():
        if name != "rope_theta":
            _merge_alias(values, alias, name)
    if not is_transformers_quantization(values.get("quantization_config")):
        _merge_alias(values, "quantization_config", "quant_config")
    _read_dtype(values)
    _read_biases(values)
    for name, default in NONE_MEANS.items():
        if name in values and values[name] is None:
            values[name] = default
    return values


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """`canonical` values with the defaults of their dialect for what they leave out and other fields follow from.

    Raises:
        ConfigError: there is no such dialect, or two names of one thing have different values.
    """
    dialect = values.get("dialect") or HUGGING_FACE
    require_one_of("dialect", dialect, DIALECTS)
    values = canonical(values) | {"dialect": dialect}
    kin = values.get("model_type")
    if kin == "qwen2":  # whose projections have these biases, whatever a file says
        values |= {"qkv_has_bias": True, "attn_proj_has_bias": False}
    if kin == "mixtral":
        values = with_experts(values)
    if dialect == MINDFORMERS:
        return canonical(PLAIN_DEFAULTS) | {"norm_init_type": None} | values
    values = HUGGING_FACE_DEFAULTS | KIN_DEFAULTS.get(kin if isinstance(kin, str) else "", {}) | values
    values = {"param_init_type": "float32", "compute_dtype": "float32"} | values
    values = {
        "rotary_dtype": _rotated_in(values["compute_dtype"]),
        "norm_init_type": values["param_init_type"],
    } | values
    return {"seq_length": values["max_position_embeddings"]} | values


def as_llama(values: dict[str, Any]) -> dict[str, Any]:
    """The `completed` values of a Mistral or a Qwen2 as those of the Llama it is where no window slides.

    Raises:
        ConfigError: a window is shorter than the context.
    """
    kin = values.get("model_type")
    if kin == NO_KIN:
        return values | {"model_type": "llama"}
    if kin not in KIN_DEFAULTS:
        return values
    sliding, window, context = _slides(values, kin), values.get("sliding_window"), values["max_position_embeddings"]
    require(
        window is None or is_number(window),
        f"sliding_window must be None or an int, got {window!r}",
    )
    require(
        not sliding or (window is not None and window >= context),
        f"sliding_window ({window}) must be None or at least max_position_embeddings ({context}): "
        "a Llama attends to its whole context",
    )
    classes = [str(name).replace(KIN[kin], KIN["llama"]) for name in values.get("architectures") or []]
    rest = {key: value for key, value in values.items() if key not in (*WINDOW, "architectures", "model_type")}
    return rest | {"model_type": "llama", "architectures": classes or None}


def with_experts(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a Mixtral with what it says of its experts as the `moe_config` of a Llama.

    Raises:
        ConfigError: a `moe_config` beside them says otherwise, or noise is added to the router's input.
    """
    said = MIXTRAL | {key: values[key] for key in MIXTRAL if values.get(key) is not None}
    noise, experts = said["router_jitter_noise"], said["num_local_experts"]
    require(noise == 0, f"router_jitter_noise must be 0: a Llama routes without noise, got {noise}")
    require(experts != 1, "num_local_experts must be at least 2 in a Mixtral, got 1")
    rest = {key: value for key, value in values.items() if key not in MIXTRAL}
    if said["output_router_logits"]:
        rest["output_router_logits"] = True
    moe = {"expert_num": experts, "num_experts_chosen": said["num_experts_per_tok"]}
    if values.get("moe_config") is None:
        factor = said["router_aux_loss_coef"]
        weighed = {"aux_loss_factor": factor} if factor else {"aux_loss_types": ["expert"], "aux_loss_factors": [0.0]}
        return rest | {"moe_config": MoEConfig.read({**moe, **weighed, "use_gmm": True}, "moe_config")}
    given = MoEConfig.read_file(values["moe_config"], "moe_config")
    stated = {"expert_num": "num_local_experts", "num_experts_chosen": "num_experts_per_tok"}
    for name, theirs in stated.items():
        found, value = getattr(given, name), values.get(theirs)
        require(value is None or found == value, f"moe_config {name} ({found}) contradicts {theirs} ({value})")
    return rest | {"moe_config": given}


def _slides(values: Mapping[str, Any], kin: str) -> bool:
    """Whether some layer of a kin attends to a window."""
    if kin in ("mistral", "mixtral"):
        return values.get("sliding_window") is not None
    layers, types = values.get("num_hidden_layers", 32), values.get("layer_types")
    if types is not None:
        allowed = ("full_attention", "sliding_attention")
        fits = isinstance(types, list) and all(kind in allowed for kind in types) and len(types) == layers
        require(fits, f"layer_types must name {' or '.join(allowed)} for each of num_hidden_layers ({layers})")
        return "sliding_attention" in types
    used, first = values.get("use_sliding_window", False), values.get("max_window_layers", 0)
    require(isinstance(used, bool), f"use_sliding_window must be true or false, got {used!r}")
    require(is_number(first), f"max_window_layers must be an int, got {first!r}")
    return used and values.get("sliding_window") is not None and isinstance(layers, int) and first < layers


def moved_dtype(values: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The fields that change when the type of storage becomes `dtype`: those that are one with it go along."""
    old, new = values.get("param_init_type"), dtype_name(dtype)
    others = ("compute_dtype", "rotary_dtype", "embedding_init_type", "norm_init_type")
    together = [name for name in others if values.get(name) == old]
    moved = dict.fromkeys(["param_init_type", *together], new)
    return moved | {name: _rotated_in(new) for name in together if name == "rotary_dtype"}


def _rotated_in(dtype: Any) -> Any:
    """The type that a model which computes in `dtype` rotates in: doubles by angles of fp32, as in other families."""
    return "float32" if dtype == DOUBLE else dtype


def merge_rope(values: dict[str, Any], max_position_embeddings: int) -> dict[str, Any]:
    """`values` with all that is said of RoPE as `rope_theta` (the unscaled base), `extend_method`, `scaling_factor`.

    Hugging Face's `rope_theta` is the base in use: NTK's, which is written as a plain base, may name both.

    Raises:
        ConfigError: two views of RoPE disagree.
    """
    values = dict(values)
    views = {name: view for name in ROPE_VIEWS if (view := values.pop(name, None))}
    base, outer = values.pop("theta", None), values.pop("rope_theta", None)
    method, factor = values.pop("extend_method", None), values.pop("scaling_factor", None)
    inner = {name: theta for name, view in views.items() if (theta := _theta_in(view, name)) is not None}
    default = MINDFORMERS_FIELDS["theta"]
    thetas = {"theta": base, "rope_theta": outer} | {f"rope_theta inside {name}": t for name, t in inner.items()}
    said = {name: theta for name, theta in thetas.items() if theta is not None}
    if method is None and factor is None:
        _require_same(said)
        theta = next(iter(said.values()), default)
        read = [read_hugging_face(view, theta, max_position_embeddings, name) for name, view in views.items()]
        if len(read) == 2:
            require(
                read[0] == read[1],
                f"rope_scaling ({views['rope_scaling']}) contradicts rope_parameters ({views['rope_parameters']})",
            )
        chosen = read[0] if read else Extension(theta)
    else:
        plain = base if base is not None else outer if outer is not None else next(iter(inner.values()), default)
        chosen = Extension(plain, extend_method(method), 1.0 if factor is None else factor)
        in_use = chosen.to_hugging_face()["rope_theta"]
        _require_same({name: theta for name, theta in said.items() if theta not in (chosen.theta, in_use)} and said)
        for name, view in views.items():
            _require_agreement(chosen, view, name, max_position_embeddings)
    return values | {"rope_theta": chosen.theta, "extend_method": chosen.method, "scaling_factor": chosen.factor}


def without_overridden_rope(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A file's `values`, whose RoPE `merge_rope` has read, less what `overrides` say anew."""
    dropped = set()
    views = [overrides[name] for name in ROPE_VIEWS if name in overrides]
    if views or overrides.get("extend_method", values["extend_method"]) != values["extend_method"]:
        dropped |= {"extend_method", "scaling_factor"}
    if not overrides.keys().isdisjoint(("theta", "rope_theta")) or any("rope_theta" in (view or ()) for view in views):
        dropped.add("rope_theta")
    return {key: value for key, value in values.items() if key not in dropped}


def _theta_in(view: Any, name: str) -> Any:
    require(isinstance(view, dict), f"{name} must be a dict or None, got {view!r}")
    return view.get("rope_theta")


def _require_same(thetas: dict[str, Any]) -> None:
    first = next(iter(thetas.items()), ("", None))
    for name, theta in thetas.items():
        require(theta == first[1], f"{first[0]} ({first[1]}) contradicts {name} ({theta})")


def _require_agreement(chosen: Extension, view: dict[str, Any], name: str, context: int) -> None:
    """The file's other view of RoPE turns as `chosen` does."""
    if chosen.method == "DYNAMIC_NTK":
        agrees = view.get("rope_type") == "dynamic_ntk"
    else:
        in_use = chosen.to_hugging_face()["rope_theta"]
        other = read_hugging_face(view, in_use, context, name)
        agrees = other.settings(4, context) == read_hugging_face(
            chosen.to_hugging_face(), in_use, context, name
        ).settings(4, context)
    require(
        agrees,
        f'{name} ({view}) contradicts extend_method "{chosen.method}" with scaling_factor ({chosen.factor})',
    )


def _merge_alias(values: dict[str, Any], alias: str, name: str) -> None:
    """Move `alias` to `name`; None says nothing where the other speaks."""
    if alias not in values:
        return
    value, other = values.pop(alias), values.get(name)
    if value is not None and other is not None:
        require(value == other, f"{name} ({other}) contradicts its alias {alias} ({value})")
    values[name] = other if other is not None else value


def _read_dtype(values: dict[str, Any]) -> None:
    """Hugging Face's `dtype` (or `torch_dtype`) names the type of storage, and of computing unless that is said."""
    new, old = dtype_name(values.pop("dtype", None)), dtype_name(values.pop("torch_dtype", None))
    if new is not None and old is not None:
        require(new == old, f"dtype ({new}) contradicts its alias torch_dtype ({old})")
    stored = new if new is not None else old
    for name in DTYPE_FIELDS:
        if name in values:
            values[name] = dtype_name(values[name])
    if stored in (None, "auto"):
        return
    require_one_of("dtype", stored, (*DTYPES, DOUBLE))
    said = values.setdefault("param_init_type", stored)
    require(said == stored, f"param_init_type ({said}) contradicts its alias dtype ({stored})")
    values.setdefault("compute_dtype", stored)


def _read_biases(values: dict[str, Any]) -> None:
    """Hugging Face's one `attention_bias` is both of MindFormers' switches; its Qwen2 has none."""
    both = values.pop("attention_bias", None)
    if both is None or values.get("model_type") == "qwen2":
        return
    for name in ("qkv_has_bias", "attn_proj_has_bias"):
        said = values.setdefault(name, both)
        require(said == both, f"attention_bias ({both}) contradicts {name} ({said})")

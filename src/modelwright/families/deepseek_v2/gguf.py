"""A DeepSeek-V2 in a GGUF file (``deepseek2``): its metadata as a ``config.json``, its tensors under official names.

Both kinds of file are read: with ``attn_kv_b`` whole, and with its key and value parts apart, as llama.cpp writes them
since it attends in latent space. Pairs are turned alike in both programs, so no row is reordered.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.gguf.family import GgufFamily
from modelwright.checkpoints.gguf.file import GgufFile, GgufTensor
from modelwright.checkpoints.gguf.names import Named, foreign_name, named_tensors
from modelwright.configs.activations import SILU_NAMES
from modelwright.errors import CheckpointError

ARCHITECTURE = "deepseek2"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.kv_b_proj",
    "attn_v_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.N.gate_proj",
    "ffn_up_exps": "mlp.experts.N.up_proj",
    "ffn_down_exps": "mlp.experts.N.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "exp_probs_b": "mlp.gate.e_score_correction",
}
SCORING = {1: "softmax", 2: "sigmoid"}
GROUPS_OF = {160: (8, 3)}
"""Groups of experts, and groups a token chooses from, by the number of experts where a file does not say them."""


def read_config(file: GgufFile) -> dict[str, Any]:
    """The contents of a ``config.json`` for the model in ``file``.

    Raises:
        CheckpointError: something is missing, or is there that a DeepSeek-V2 does not have.
    """
    heads = file.integer("attention.head_count")
    rope = file.integer("rope.dimension_count")
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": file.integer("embedding_length"),
        "intermediate_size": file.integer("feed_forward_length"),
        "num_hidden_layers": file.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": file.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": file.integer("attention.kv_lora_rank"),
        "qk_nope_head_dim": file.integer("attention.key_length_mla", file.integer("attention.key_length")) - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": file.integer("attention.value_length_mla", file.integer("attention.value_length")),
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.integer("context_length"),
        "vocab_size": file.tensor("token_embd.weight").shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": file.number("rope.freq_base", 10000.0),
        "rope_scaling": _extension(file),
        "hidden_act": "silu",
        **_experts(file),
    }


def read_tensors(file: GgufFile, config: Mapping[str, Any]) -> Iterator[Named]:
    """The official tensors, each made when it is asked for; stacks of experts come apart."""
    for name, part, tensor in named_tensors(file, LAYER, apart_from=set()):
        if part == "exp_probs_b":
            yield Named.of(f"{name.removesuffix('.bias')}_bias", tensor)
        elif part.endswith("_exps"):
            yield from _apart(name, tensor)
        elif part == "attn_k_b":
            yield _joined(file, name, tensor)
        elif part != "attn_v_b":
            yield Named.of(name, tensor)


def write_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a file for a ``config.json``, as llama.cpp writes it for attention in latent space.

    Raises:
        CheckpointError: llama.cpp's DeepSeek-V2 has no way to say something that the config says.
    """
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    if not config.get("use_mla", True):
        raise CheckpointError("llama.cpp's deepseek2 attends in latent space: use_mla must be True, not False")
    for name, own in (("hidden_act", SILU_NAMES), ("moe_layer_freq", (1,)), ("attention_bias", (False,))):
        if config.get(name, own[0]) not in own:
            raise CheckpointError(f"llama.cpp's deepseek2 has {name} {own[0]!r} alone, not {config[name]!r}")
    told = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.get("q_lora_rank") or 0,  # llama.cpp asks for it, but at some numbers of layers
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": rope,
        "rope.freq_base": float(config["rope_theta"]),
        "vocab_size": config["vocab_size"],
        **_experts_told(config),
        **_extension_told(config.get("rope_scaling")),
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in told.items() if value is not None}


def write_tensors(official: Iterable[Named], config: Mapping[str, Any]) -> Iterator[Named]:
    """A file's tensors from the official ones: experts stacked, ``kv_b_proj`` as its keys and its values."""
    stacks: dict[str, dict[int, Named]] = {}
    for tensor in official:
        if tensor.name.endswith("e_score_correction_bias"):
            number = tensor.name.split(".")[2]
            yield replace(tensor, name=f"blk.{number}.exp_probs_b.bias")
            continue
        name, expert = foreign_name(tensor.name, LAYER)
        if expert is not None:
            stacks.setdefault(name, {})[expert] = tensor
        elif ".attn_kv_b." in name:
            yield from _split_kv_b(name, tensor, config)
        else:
            yield replace(tensor, name=name)
    for name, experts in stacks.items():
        parts = [experts[i] for i in sorted(experts)]
        shape = (len(parts), *parts[0].shape)
        yield Named(name, shape, parts[0].dtype, partial(_stack, parts))


def _stack(parts: list[Named]) -> Tensor:
    return torch.stack([part.make() for part in parts])


def _split_kv_b(name: str, tensor: Named, config: Mapping[str, Any]) -> Iterator[Named]:
    heads, nope, v_dim = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    rank = tensor.shape[1]

    def keys() -> Tensor:
        return tensor.make().unflatten(0, (heads, -1))[:, :nope].transpose(1, 2).contiguous()

    def values() -> Tensor:
        return tensor.make().unflatten(0, (heads, -1))[:, nope:].contiguous()

    yield Named(name.replace("attn_kv_b", "attn_k_b"), (heads, rank, nope), tensor.dtype, keys)
    yield Named(name.replace("attn_kv_b", "attn_v_b"), (heads, v_dim, rank), tensor.dtype, values)


def _experts_told(config: Mapping[str, Any]) -> dict[str, Any]:
    if not config.get("n_routed_experts"):  # llama.cpp asks for widths of experts that there are none of
        return {
            "leading_dense_block_count": config["num_hidden_layers"],
            "expert_feed_forward_length": config["intermediate_size"],
            "expert_shared_count": 0,
        }
    gating = {name: number for number, name in SCORING.items()}
    return {
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config.get("n_shared_experts") or 0,
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": bool(config["norm_topk_prob"]),
        "expert_gating_func": gating[config["scoring_func"]],
        "expert_group_count": config.get("n_group") or 1,
        "expert_group_used_count": config.get("topk_group") or 1,
    }


def _extension_told(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    if not scaling:
        return {}
    kind = scaling.get("type", scaling.get("rope_type"))
    mscale, gain = scaling.get("mscale", 1.0), scaling.get("mscale_all_dim", 0.0)
    if kind != "yarn" or mscale != gain:
        raise CheckpointError(
            f"llama.cpp's deepseek2 has yarn with one mscale: got type {kind!r}, mscale {mscale}, mscale_all_dim {gain}"
        )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": gain / 10,
        "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast", 32.0)),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow", 1.0)),
    }


def _apart(name: str, stack: GgufTensor) -> Iterator[Named]:
    experts, *shape = stack.shape
    for expert in range(experts):
        own = name.replace(".N.", f".{expert}.")
        yield Named(own, tuple(shape), stack.dtype, partial(stack.read, expert), stack.in_blocks)


def _joined(file: GgufFile, name: str, keys: GgufTensor) -> Named:
    """``kv_b_proj`` of keys ``[heads, rank, nope]`` and values ``[heads, v_dim, rank]``, a head's rows together."""
    values = file.tensor(keys.name.replace("attn_k_b", "attn_v_b"))
    if len(keys.shape) != 3 or len(values.shape) != 3 or keys.shape[:2] != values.shape[::2]:
        raise CheckpointError(
            f"{file.path}: {keys.name} {list(keys.shape)} and {values.name} {list(values.shape)} must be [heads, rank, "
            "nope] and [heads, v_dim, rank]"
        )
    heads, rank, nope = keys.shape

    def make() -> Tensor:
        return torch.cat((keys.read().transpose(1, 2), values.read()), dim=1).flatten(0, 1)

    dtype = torch.promote_types(keys.dtype, values.dtype)
    return Named(name, (heads * (nope + values.shape[1]), rank), dtype, make, keys.in_blocks or values.in_blocks)


def _experts(file: GgufFile) -> dict[str, Any]:
    count = file.integer("expert_count", 0)
    if not count:
        return {"n_routed_experts": None, "first_k_dense_replace": file.integer("block_count")}
    gating = file.integer("expert_gating_func", 0) or 1  # files of DeepSeek-V2 often leave it out
    if gating not in SCORING:
        raise CheckpointError(f"{file.path}: expert_gating_func {gating} is not read here; 1 and 2 are")
    groups, chosen = GROUPS_OF.get(count, (1, 1))
    groups, chosen = file.integer("expert_group_count", groups), file.integer("expert_group_used_count", chosen)
    biased = any(name.endswith("exp_probs_b.bias") for name in file.tensors)
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": file.integer("expert_used_count"),
        "n_shared_experts": file.integer("expert_shared_count", 0) or None,
        "moe_intermediate_size": file.integer("expert_feed_forward_length"),
        "first_k_dense_replace": file.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": file.number("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(file.metadata.get("deepseek2.expert_weights_norm", False)),
        "scoring_func": SCORING[gating],
        "topk_method": "noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        "n_group": groups,
        "topk_group": chosen,
    }


def _extension(file: GgufFile) -> dict[str, Any] | None:
    factor = file.number("rope.scaling.factor", file.number("rope.scale_linear", 0.0))
    kind = file.word("rope.scaling.type", "linear" if factor not in (0.0, 1.0) else "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise CheckpointError(f"{file.path}: rope.scaling.type {kind!r} is not read here; none and yarn are")
    # llama.cpp keeps a tenth of mscale_all_dim, and no mscale, which is the same number in all published models
    gain = float(f"{10 * file.number('rope.scaling.yarn_log_multiplier', 0.0):.6g}")
    return {
        "type": "yarn",
        "factor": file.number("rope.scaling.factor"),
        "original_max_position_embeddings": file.integer("rope.scaling.original_context_length"),
        "beta_fast": file.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": file.number("rope.scaling.yarn_beta_slow", 1.0),
        "mscale": gain,
        "mscale_all_dim": gain,
    }


GGUF = GgufFamily(ARCHITECTURE, read_config, read_tensors, write_metadata, write_tensors)

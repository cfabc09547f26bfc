"""A Llama in a GGUF file (``llama``): metadata as a ``config.json``, tensors under official names, and the way back.

llama.cpp turns pairs of neighbouring rows, Hugging Face rows half a head apart; so queries and keys are reordered.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.gguf.family import GgufFamily
from modelwright.checkpoints.gguf.file import GgufFile, GgufTensor
from modelwright.checkpoints.gguf.names import Named, foreign_name, named_tensors
from modelwright.configs.activations import SILU_NAMES
from modelwright.errors import CheckpointError
from modelwright.ops.rotary import llama3_frequencies, yarn_mscale

ARCHITECTURE = "llama"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA3 = [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)]
"""The extensions of Llama 3.1 and 3.2: factor, low and high frequency factor, trained length."""
FACTORS = "rope_freqs.weight"
OTHERS = {
    "expert_count": (0, "a mixture of experts, as in a Mixtral,"),
    "attention.sliding_window": (0, "a window that slides"),
    "attention.causal": (True, "attention to what follows"),
    "attention.clamp_kqv": (0.0, "a clamp"),
    "attention.max_alibi_bias": (0.0, "ALiBi"),
    "attention.scale": (0.0, "a scale of its own"),
    "attention.temperature_scale": (0.0, "a temperature by position"),
    "embedding_scale": (0.0, "a scale of its own"),
    "residual_scale": (0.0, "a scale of its own"),
    "logit_scale": (0.0, "a scale of its own"),
    "rope.scaling.attn_factor": (1.0, "a factor of its own"),
    "rope.scaling.yarn_attn_factor": (1.0, "a factor of its own"),
    "rope.scaling.yarn_ext_factor": (1.0, "a factor of its own"),
    "rope.scaling.yarn_beta_fast": (32.0, "a ramp of its own"),
    "rope.scaling.yarn_beta_slow": (1.0, "a ramp of its own"),
    "rope.scaling.yarn_log_multiplier": (0.0, "a factor of its own"),
    "use_parallel_residual": (False, "a parallel residual"),
}
"""Metadata that changes what a Llama computes: the value which changes nothing, and what any other would be."""


def read_config(file: GgufFile) -> dict[str, Any]:
    """The contents of a ``config.json`` for the model in ``file``.

    Raises:
        CheckpointError: something is missing, or is there that a Llama does not have.
    """
    _refuse_others(file)
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    theta = file.number("rope.freq_base", 10000.0)
    turned = file.integer("rope.dimension_count", hidden // max(heads, 1))
    head_dim = file.integer("attention.key_length", turned)
    for key, width in (("rope.dimension_count", turned), ("attention.value_length", None)):
        if (width or file.integer(key, head_dim)) != head_dim:
            raise CheckpointError(f"{file.path}: llama.{key} must be the width of a head, {head_dim}")
    biases = [f"blk.0.{part}.bias" in file.tensors for part in ("attn_q", "attn_output")]
    kind = ("Qwen2ForCausalLM", "qwen2") if biases == [True, False] else ("LlamaForCausalLM", "llama")
    return {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "hidden_size": hidden,
        "intermediate_size": file.integer("feed_forward_length"),
        "num_hidden_layers": file.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.integer("context_length"),
        "vocab_size": file.tensor("token_embd.weight").shape[0],
        "rope_parameters": {"rope_theta": theta} | _extension(file, theta, head_dim),
        **({"attention_bias": biases[0]} if biases[0] == biases[1] else {}),
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
    }


def read_tensors(file: GgufFile, config: Mapping[str, Any]) -> Iterator[Named]:
    """The official tensors, each made when it is asked for."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, part, tensor in named_tensors(file, LAYER, apart_from={FACTORS}):
        yield Named.of(name, tensor, _read(tensor, heads.get(part)))


def write_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a file for a ``config.json``.

    Raises:
        CheckpointError: llama.cpp's Llama has no way to say something that the config says.
    """
    experts = config.get("moe_config", {}).get("expert_num", 1)
    if experts > 1:
        raise CheckpointError(f"llama.cpp's Llama is written without experts, and moe_config.expert_num is {experts}")
    if config["hidden_act"] not in SILU_NAMES:
        raise CheckpointError(f"llama.cpp's Llama has the activation silu, and hidden_act is {config['hidden_act']!r}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    rope = config["rope_parameters"]
    told = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        told |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        _refuse_other_yarn(rope)
        trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        told["rope.scaling.original_context_length"] = trained
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise CheckpointError(f"llama.cpp's Llama has no rope type {kind!r}; it has default, linear, yarn and llama3")
    return {f"{ARCHITECTURE}.{key}": value for key, value in told.items()}


def _refuse_other_yarn(rope: Mapping[str, Any]) -> None:
    factor = rope["factor"]
    own = {key: rope.get(key) for key in ("beta_fast", "beta_slow", "attention_factor")}
    if not own["attention_factor"] and rope.get("mscale") and rope.get("mscale_all_dim"):
        own["attention_factor"] = yarn_mscale(factor, rope["mscale"]) / yarn_mscale(factor, rope["mscale_all_dim"])
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": yarn_mscale(factor, 1.0)}
    for key, value in own.items():
        if value is not None and not math.isclose(value, usual[key], rel_tol=1e-6):
            raise CheckpointError(f"llama.cpp's Llama has yarn with {key} {usual[key]:.6g}, not {value:.6g}")


def write_tensors(official: Iterable[Named], config: Mapping[str, Any]) -> Iterator[Named]:
    """A file's tensors from the official ones, and beside them the divisors of Llama 3's extension."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in official:
        name, _ = foreign_name(tensor.name, LAYER)
        own = heads.get(name.split(".")[-2])
        yield Named(name, tensor.shape, tensor.dtype, _turned(tensor, own))
    rope = config["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        divisors = _divisors(rope, head_dim)
        yield Named(FACTORS, tuple(divisors.shape), divisors.dtype, lambda: divisors)


def turn_back(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of a projection's rows, pairs side by side, to Hugging Face's, halves one after the other."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def turn(rows: Tensor, heads: int) -> Tensor:
    """Hugging Face's order of a projection's rows to llama.cpp's."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def _turned(tensor: Named, heads: int | None) -> Callable[[], Tensor]:
    return tensor.make if heads is None else lambda: turn(tensor.make(), heads)


def _divisors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    names = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    theta, (factor, trained, low, high) = float(rope["rope_theta"]), (rope[name] for name in names)
    extended = llama3_frequencies(head_dim, theta, factor, trained, low, high, torch.device("cpu"))
    return _plain(theta, head_dim) / extended


def _plain(theta: float, head_dim: int) -> Tensor:
    return theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)


def _read(tensor: GgufTensor, heads: int | None) -> Callable[[], Tensor]:
    return tensor.read if heads is None else lambda: turn_back(tensor.read(), heads)


def _refuse_others(file: GgufFile) -> None:
    """Raise for what llama.cpp's Llama may have and the model here has not."""
    for key, (plain, what) in OTHERS.items():
        value = file.metadata.get(f"{ARCHITECTURE}.{key}", plain)
        if value != plain:
            raise CheckpointError(f"{file.path} has llama.{key} {value!r}: {what} is not read from GGUF")


def _extension(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """How rotation goes beyond the trained context, as ``rope_parameters`` say it."""
    if FACTORS in file.tensors:
        return _llama3(file, theta, head_dim)
    factor = file.number("rope.scaling.factor", file.number("rope.scale_linear", 0.0))  # the second of older files
    kind = file.word("rope.scaling.type", "linear" if factor not in (0.0, 1.0) else "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"{file.path}: rope.scaling.type {kind!r} is not read here; none, linear and yarn are")
    extension = {"rope_type": kind, "factor": factor or file.number("rope.scaling.factor")}
    if kind == "yarn":
        trained = file.integer("rope.scaling.original_context_length", file.integer("context_length"))
        extension["original_max_position_embeddings"] = trained
    return extension


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """The extension whose frequencies the file's divisors give."""
    divisors = file.tensors[FACTORS].read().float()
    plain = _plain(theta, head_dim)
    if divisors.shape != plain.shape:
        raise CheckpointError(f"{file.path}: {FACTORS} has shape {list(divisors.shape)}, not {list(plain.shape)}")
    for factor, low, high, trained in LLAMA3:
        wanted = llama3_frequencies(head_dim, theta, factor, trained, low, high, torch.device("cpu"))
        if torch.allclose(plain / divisors, wanted, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": trained,
            }
    raise CheckpointError(f"{file.path}: {FACTORS} holds the factors of no extension of Llama 3 that is known here")


GGUF = GgufFamily(ARCHITECTURE, read_config, read_tensors, write_metadata, write_tensors)

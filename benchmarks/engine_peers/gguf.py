"""Our checkpoints of L and D as GGUF files for llama.cpp, bf16 as it is; no vocabulary, since prompts are token ids."""

import importlib
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
EXPERT = re.compile(r"(model\.layers\.(\d+)\.mlp\.experts)\.0\.(gate|up|down)_proj\.weight")
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def write_gguf(checkpoint: Path, out: Path) -> None:
    """One file for llama.cpp's ``llama`` or ``deepseek2``; norms and routers in fp32, as it wants them."""
    gguf, numpy = importlib.import_module("gguf"), importlib.import_module("numpy")
    config = json.loads((checkpoint / "config.json").read_text())
    arch = {"llama": "llama", "deepseek_v2": "deepseek2"}[config["model_type"]]
    writer = gguf.GGUFWriter(out, arch)
    writer.add_tokenizer_model("none")
    for key, value in _settings(config).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{arch}.{key}", value)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, data in _renamed(_read(checkpoint, numpy), config, numpy):
        if data.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, (data.astype(numpy.uint32) << 16).view(numpy.float32))
        else:
            raw = numpy.ascontiguousarray(data).view(numpy.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _settings(config: dict[str, Any]) -> dict[str, int | float]:
    """Latent attention is there one head of keys that all queries share, and no rank stands for no compression."""
    rope = config.get("rope_parameters") or {}
    common = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
        "vocab_size": config["vocab_size"],
    }
    if config["model_type"] == "llama":
        turned = config["hidden_size"] // config["num_attention_heads"]
        return common | {"attention.head_count_kv": config["num_key_value_heads"], "rope.dimension_count": turned}
    rank, turned, plain = (config[name] for name in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"))
    return common | {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + turned,
        "attention.value_length": rank,
        "attention.key_length_mla": plain + turned,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": turned,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config.get("routed_scaling_factor", 1.0)),
    }


def _read(checkpoint: Path, numpy: Any) -> dict[str, Any]:
    """Every tensor of the safetensors files as the 16 bits of its numbers, mapped and not yet read."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        for name, entry in json.loads(mapped[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = numpy.frombuffer(mapped, numpy.uint16, (end - begin) // 2, start + begin)
            found[name] = data.reshape(entry["shape"])
    return found


def _renamed(tensors: dict[str, Any], config: dict[str, Any], numpy: Any) -> Iterator[tuple[str, Any]]:
    """The tensors by llama.cpp's names; experts are stacked, and ``kv_b_proj`` is cut into its keys and values."""
    for name, data in tensors.items():
        expert, layer = EXPERT.fullmatch(name), LAYER.fullmatch(name)
        if expert:
            stem, block, part = expert.groups()
            every = range(config["n_routed_experts"])
            stacked = numpy.stack([tensors[f"{stem}.{each}.{part}_proj.weight"] for each in every])
            yield f"blk.{block}.ffn_{part}_exps.weight", stacked
        elif ".mlp.experts." in name:
            continue
        elif layer and layer[2] == "self_attn.kv_b_proj":
            plain = config["qk_nope_head_dim"]
            heads = data.reshape(config["num_attention_heads"], plain + config["v_head_dim"], -1)
            yield f"blk.{layer[1]}.attn_k_b.weight", heads[:, :plain].swapaxes(1, 2)
            yield f"blk.{layer[1]}.attn_v_b.weight", heads[:, plain:]
        elif layer:
            yield f"blk.{layer[1]}.{NAMES[layer[2]]}.weight", _paired(data, layer[2], config)
        else:
            yield f"{NAMES[name.removesuffix('.weight')]}.weight", data


def _paired(data: Any, name: str, config: dict[str, Any]) -> Any:
    """A Llama's queries and keys are turned in halves here, in neighbours there."""
    counts = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    if config["model_type"] != "llama" or name not in counts:
        return data
    heads = config[counts[name]]
    return data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)

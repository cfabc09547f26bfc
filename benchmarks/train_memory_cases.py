"""Models of all families in two sizes, and the runs whose memory `train_memory` compares with their plans."""

from typing import Any

LATENT = {"kv_lora_rank": 64, "q_lora_rank": None, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
EXPERTS = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "deepseek_v2": {"model_type": "deepseek_v2"} | LATENT | EXPERTS,
    "deepseek_vl2": {"model_type": "deepseek_vl_v2"},
    "imagegpt": {"model_type": "imagegpt", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
TOWER = {"image_size": 56, "patch_size": 14, "mlp_ratio": 4.0}


def _latent(dim: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 3 * dim,
        "moe_intermediate_size": dim // 2,
        "vocab_size": vocabulary,
    }


def _llama(dim: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"num_key_value_heads": heads // 2, "intermediate_size": 3 * dim, "vocab_size": vocabulary}


def _imagegpt(dim: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    return {"n_embd": dim, "n_layer": layers, "n_head": heads, "vocab_size": 513, "n_positions": positions}


def _vl2(dim: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    tower = TOWER | {"width": dim // 2, "layers": 2, "heads": 4}
    language = LATENT | EXPERTS | _latent(dim, layers, heads, vocabulary)
    projector = {"input_dim": dim // 2, "n_embed": dim}
    return {"vision_config": tower, "projector_config": projector, "language_config": language}


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "row": 128,
        "llama": _llama(64, 2, 4, 320),
        "deepseek_v2": _latent(64, 2, 2, 320),
        "deepseek_vl2": _vl2(64, 2, 2, 320),
        "imagegpt": _imagegpt(64, 2, 4, 256),
    },
    "small": {
        "row": 64,
        "llama": _llama(320, 8, 8, 16000),
        "deepseek_v2": _latent(256, 6, 4, 16000),
        "deepseek_vl2": _vl2(256, 6, 4, 16000),
        "imagegpt": _imagegpt(384, 10, 8, 1024),
    },
}
LORA = {"tune": {"lora": {"rank": 8}}}
LOW = {"precision": {"compute": "bfloat16"}}
FULL = {"recompute": "full"}
RUNS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, recompute": FULL,
    "bfloat16": LOW,
    "bfloat16, recompute": LOW | FULL,
    "float32, LoRA": LORA,
    "bfloat16, LoRA": LORA | LOW,
    "int8 moments": {"optimizer": {"state": "int8"}},
}

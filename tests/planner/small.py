"""Configs small enough to reckon with by hand."""

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.llama.config import LlamaConfig

ROW = 4 * 8 + 8 * 4 + 2 * 4 * 4  # one layer's q and o, k and v of `llama()`


def llama(**changes) -> LlamaConfig:
    """Two layers of 4 heads over 2 key heads of 2 channels, feed-forward of 16 channels, 32 words."""
    settings = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
    return LlamaConfig(**settings | changes)


def deepseek(**changes) -> DeepseekV2Config:
    """Three layers, the first dense: 8 experts of which 2 are chosen and 1 is shared; latent attention of 4 heads."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": None,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
        "max_position_embeddings": 128,
        "torch_dtype": "float32",
    }
    return DeepseekV2Config(**settings | changes)


def vl2() -> DeepseekVLV2Config:
    """Tiles of 56 pixels, 2 x 2 rows each, before the decoder of `deepseek()`."""
    return DeepseekVLV2Config(
        vision_config={"image_size": 56, "patch_size": 14, "width": 16, "layers": 1, "heads": 2},
        language_config=deepseek().to_dict(),
        candidate_resolutions=[[56, 56], [112, 56]],
    )

"""The tiny models that ranks share in the tests, one for each way in which heads, widths and experts are cut."""

from collections.abc import Callable
from typing import Any

import torch

from modelwright.checkpoints.quantized_model import quantize_model
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, YARN, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

BIASED = {"qkv_has_bias": True, "attn_proj_has_bias": True}
PLAIN = MHA | {"attention_bias": True}

MODELS: dict[str, Callable[[], Any]] = {
    "latent, dense": lambda: tiny_v2(base=DENSE),
    "latent, experts": lambda: tiny_v2(base=MOE),
    "latent, biases": lambda: tiny_v2(base=MOE, attention_bias=True),
    "latent, plain experts": lambda: tiny_v2(base=MOE, gated_mlp=False),
    "latent, no query latent": lambda: tiny_v2(base=YARN),
    "latent, grouped routing": lambda: tiny_v2(base=GROUPED),
    "latent, biased routing": lambda: tiny_v2(base=NOAUX),
    "grouped queries, experts": lambda: tiny_v2(base=PLAIN),
    "grouped queries, merged": lambda: tiny_v2(base=PLAIN, qkv_concat=True),
    "Llama": lambda: tiny_llama(base=HUGGING_FACE),
    "Llama, tied head": lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True),
    "Llama, one key head": lambda: tiny_llama(base=HUGGING_FACE, num_key_value_heads=1),
    "Llama, wide heads": lambda: tiny_llama(base=HUGGING_FACE, head_dim=12),
    "Llama, computed in slices": lambda: tiny_llama(base=HUGGING_FACE, pretraining_tp=4),
    "Llama, odd widths": lambda: tiny_llama(base=HUGGING_FACE, intermediate_size=47, vocab_size=61),
    "MindFormers, merged": lambda: tiny_llama(qkv_concat=True, **BIASED),
    "MindFormers, merged, one key head": lambda: tiny_llama(qkv_concat=True, n_kv_heads=1, **BIASED),
    "MindFormers, merged, as many key heads": lambda: tiny_llama(qkv_concat=True, n_kv_heads=4),
    "MindFormers, types": lambda: tiny_llama(param_init_type="float16", embedding_init_type="float32", **BIASED),
    "MindFormers, experts": lambda: tiny_llama(
        moe_config=EXPERTS | {"shared_expert_num": 1, "use_shared_expert_gating": True}
    ),
    "ImageGPT": lambda: tiny_imagegpt(n_head=4),
    "ImageGPT, upcast": lambda: tiny_imagegpt(
        n_head=4, reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True
    ),
    "DeepSeek-VL2": tiny_vl2,
    "int8": lambda: quantize_model(tiny_v2(base=MOE), "int8", keep_head=False),
    "int8, ImageGPT": lambda: quantize_model(tiny_imagegpt(n_head=4), "int8"),
    "int4": lambda: quantize_model(tiny_llama(base=HUGGING_FACE, **WIDE), "int4", group=32, keep_head=False),
    "int4, experts": lambda: quantize_model(tiny_v2(base=MOE, **WIDE_EXPERTS), "int4", group=64),
}
WIDE = {"initializer_range": 0.1, "hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
WIDE_EXPERTS = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "v_head_dim": 64,
    "q_lora_rank": 64,
}


def build(name: str) -> Any:
    """One of them, its norms and biases moved away from one and zero, where mistakes would not show."""
    model = MODELS[name]()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model

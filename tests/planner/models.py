"""The configs that counts are proven on, and what built models say about the same numbers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from modelwright.configs import CheckedConfig
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.families.read import read_config
from modelwright.planner.parts import ByPart
from tests.fakes import DENSE, GOLDEN, GROUPED, MHA, MOE, VARIANTS, VL2
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS

HUB = Path(__file__).parents[1] / "data" / "hub_configs"
REFUSED = {"mistral-7b-v0.1"}
"""Hub files of models that are no Llama: their windows slide."""

TINY_IMAGEGPT: dict[str, Any] = {"vocab_size": 17, "n_positions": 12, "n_embd": 24, "n_layer": 2, "n_head": 3}

PARTS: dict[str, str] = {
    "vision": r"^vision\.",
    "projector": r"^(projector\.|image_newline|view_seperator|tile_indicators)",
    "embedding": r"\.(embed_tokens|wte|wpe)\.",
    "head": r"lm_head\.",
    "norms": r"(norm|ln_1|ln_2|ln_f)\.",
    "attention": r"\.(self_attn|attn)\.",
    "shared_experts": r"\.shared_experts\.",
    "routed_experts": r"\.experts\.",
    "router": r"\.(gate|shared_expert_gate)\.weight$",
    "dense_ffn": r"\.mlp\.",
}
"""The part that a parameter belongs to by its name; the first that matches."""


def build(config: CheckedConfig) -> torch.nn.Module:
    """The model of a config on the meta device: shapes and no numbers."""
    with torch.device("meta"):
        return BUILDERS[type(config)](config)


BUILDERS: dict[type[CheckedConfig], Callable[[Any], torch.nn.Module]] = {
    DeepseekV2Config: DeepseekV2ForCausalLM,
    DeepseekVLV2Config: DeepseekVLV2ForCausalLM,
    LlamaConfig: LlamaForCausalLM,
    ImageGPTConfig: ImageGPTForCausalImageModeling,
}


def parameters_by_part(model: torch.nn.Module) -> ByPart:
    """What a built model holds; a tied parameter stands under its first name only."""
    found = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        found[part] += parameter.numel()
    return ByPart(**found)


def read_hub(name: str) -> dict[str, Any]:
    """A file of `tests/data/hub_configs`."""
    return json.loads((HUB / name / "config.json").read_text())


def golden_configs(pattern: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and config of each reference file that matches."""
    for path in sorted(GOLDEN.glob(pattern)):
        with safe_open(path, "pt") as file:
            yield path.stem, json.loads(file.metadata()["config"])


V2_VARIATIONS: dict[str, dict[str, Any]] = {
    "query_direct": DENSE | {"q_lora_rank": None},
    "query_direct_biased": DENSE | {"q_lora_rank": None, "attention_bias": True},
    "query_latent_biased": DENSE | {"attention_bias": True},
    "tied": DENSE | {"tie_word_embeddings": True},
    "tied_experts": MOE | {"tie_word_embeddings": True},
    "ungated": MOE | {"gated_mlp": False},
    "no_shared": MOE | {"n_shared_experts": None},
    "three_shared": MOE | {"n_shared_experts": 3},
    "all_layers_routed": MOE | {"first_k_dense_replace": 0},
    "every_second_routed": MOE | {"num_hidden_layers": 5, "moe_layer_freq": 2},
    "late_experts": MOE | {"num_hidden_layers": 4, "first_k_dense_replace": 3},
    "sliced": DENSE | {"pretraining_tp": 4},
    "one_key_head": MHA | {"num_key_value_heads": 1, "attention_bias": True},
    "fused_queries": MHA | {"qkv_concat": True, "attention_bias": True},
    "odd_widths": GROUPED | {"qk_nope_head_dim": 6, "qk_rope_head_dim": 2, "v_head_dim": 11, "kv_lora_rank": 13},
}
VL2_VARIATIONS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tags_1d": {"tile_tag": "1D", "candidate_resolutions": [[8, 8], [24, 16], [8, 32]]},
    "linear": {"projector_config": {"projector_type": "linear", "use_bias": False}},
    "identity": {"projector_config": {"projector_type": "identity", "input_dim": 32}, "vision": {"width": 32}},
    "gelu_deep": {"projector_config": {"projector_type": "mlp_gelu", "depth": 3}},
    "pooled": {"projector_config": {"projector_type": "mlp_gelu", "token_pooling": True}},
    "pooled_and_joined": {"projector_config": {"token_pooling": True, "depth": 3, "mlp_ratio": 2}},
    "joined_by_three": {"projector_config": {"downsample_ratio": 3}},
    "class_token": {"vision": {"class_token": True}},
    "no_pool": {"vision": {"ignore_head": False, "global_pool": ""}},
    "average_unused": {"vision": {"global_pool": "avg"}},
    "partial_patches": {"vision": {"patch_size": 3, "mlp_ratio": 2.7}},
    "plain_language": {"language": MHA | {"tie_word_embeddings": True}},
}
IMAGEGPT_VARIATIONS: dict[str, dict[str, Any]] = {
    "tiny": TINY_IMAGEGPT,
    "narrow_inside": TINY_IMAGEGPT | {"n_inner": 7},
    "tied": TINY_IMAGEGPT | {"tie_word_embeddings": True},
    "every_switch": TINY_IMAGEGPT
    | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "one_layer": TINY_IMAGEGPT | {"n_layer": 1, "n_positions": 3, "vocab_size": 2},
}
LLAMA_VARIATIONS: dict[str, dict[str, Any]] = {
    "hugging_face": HUGGING_FACE,
    "hugging_face_biased": HUGGING_FACE | {"attention_bias": True},
    "hugging_face_sliced": HUGGING_FACE | {"pretraining_tp": 2},
    "mindformers": MINDFORMERS,
    "query_bias": MINDFORMERS | {"qkv_has_bias": True},
    "output_bias": MINDFORMERS | {"attn_proj_has_bias": True},
    "fused": MINDFORMERS | {"qkv_concat": True, "qkv_has_bias": True},
    "tied": MINDFORMERS | {"tie_word_embeddings": True},
    "every_head_its_keys": MINDFORMERS | {"n_kv_heads": None},
    "width_derived": MINDFORMERS | {"intermediate_size": None, "ffn_dim_multiplier": 1.3, "multiple_of": 16},
    "low_precision": MINDFORMERS | {"param_init_type": "float16", "embedding_init_type": "float32"},
    "experts": MINDFORMERS | {"moe_config": EXPERTS},
    "experts_biased": MINDFORMERS | {"moe_config": EXPERTS | {"balance_via_topk_bias": True}},
    "shared_experts": MINDFORMERS | {"moe_config": EXPERTS | {"shared_expert_num": 2}},
    "gated_shared": MINDFORMERS
    | {"moe_config": EXPERTS | {"shared_expert_num": 1, "use_shared_expert_gating": True}, "tie_word_embeddings": True},
    "gate_of_nothing": MINDFORMERS | {"moe_config": EXPERTS | {"use_shared_expert_gating": True}},
    "one_expert_is_dense": MINDFORMERS | {"moe_config": {"expert_num": 1}},
}
_MISTRAL_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-2-70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
    "llama-3.1-8b": _MISTRAL_7B | {"num_key_value_heads": 8, "vocab_size": 128256},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "mixtral-8x7b": _MISTRAL_7B | {"num_key_value_heads": 8, "moe_config": {"expert_num": 8, "num_experts_chosen": 2}},
}
"""As published; what is left out is the default of both vocabularies."""

IMAGEGPT_SIZES: dict[str, dict[str, Any]] = {
    "small": {"n_layer": 24, "n_embd": 512, "n_head": 8},
    "medium": {"n_layer": 36, "n_embd": 1024, "n_head": 8},
    "large": {"n_layer": 48, "n_embd": 1536, "n_head": 16},
}


def tiny_vl2_config(
    vision: dict[str, Any] | None = None, language: dict[str, Any] | None = None, **fields: Any
) -> DeepseekVLV2Config:
    """The fakes' DeepSeek-VL2 with fields of its parts replaced."""
    parts = {
        "vision_config": VL2["vision_config"] | (vision or {}),
        "language_config": VL2["language_config"] | (language or {}),
        "projector_config": {"n_embed": 32, "input_dim": 16} | fields.pop("projector_config", {}),
    }
    return DeepseekVLV2Config(**VL2 | parts | fields)


def configs() -> Iterator[tuple[str, Callable[[], CheckedConfig]]]:
    """Every config that is counted and built: its name, and how to make it."""

    def case(family: str, name: str, make: Callable[..., CheckedConfig], values: dict[str, Any]):
        return f"{family}/{name}", lambda: make(**values)

    for name, values in (VARIANTS | V2_VARIATIONS).items():
        yield case("v2", name, DeepseekV2Config, values)
    for name, values in VL2_VARIATIONS.items():
        yield case("vl2", name, tiny_vl2_config, values)
    for name, values in (LLAMA_VARIATIONS | LLAMA_SIZES).items():
        yield case("llama", name, LlamaConfig, values)
    for name, values in (IMAGEGPT_VARIATIONS | IMAGEGPT_SIZES).items():
        yield case("imagegpt", name, ImageGPTConfig, values)
    for name, values in golden_configs("v2_*.safetensors"):
        yield case("golden", name, DeepseekV2Config.from_dict, {"config_dict": values})
    for name, values in golden_configs("vl2_*.safetensors"):
        yield case(
            "golden", name, DeepseekVLV2Config.from_dict, {"config_dict": values | {"model_type": "deepseek_vl_v2"}}
        )
    for path in sorted(HUB.glob("*/config.json")):
        if path.parent.name not in REFUSED:
            yield case("hub", path.parent.name, read_config, {"path": path})

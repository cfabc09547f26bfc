"""Every field of every family acts, or is listed by `fields_without_effect`: never neither, and never both.

A field is given another value and all that can be seen of the config is compared with what was seen before:
weights, logits, loss, gradients and operations, generation, plan, and the engine's limits.
"""

import functools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from transformers import PreTrainedConfig

from modelwright.configs.training import OF_SEVERAL_RANKS
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig
from tests.effects import Seen, difference, seen_of
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, TILE, VL2
from tests.imagegpts import TINY
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS

LINEAR = {"rope_type": "linear", "factor": 4.0}
ROUTED = EXPERTS | {"use_gmm": False, "capacity_factor": 0.5, "aux_loss_types": ["device"], "aux_loss_factors": [0.1]}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "shared_expert_num": 1}
DEGREES = {"model_parallel": 2, "data_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4}
SHARDED: dict[str, Any] = {"enable_parallel_optimizer": True, "parallel_config": {"data_parallel": 2}}
BASES: dict[Any, dict[str, dict[str, Any]]] = {
    LlamaConfig: {
        "hugging_face": HUGGING_FACE,
        "mindformers": MINDFORMERS | {"use_past": True},
        "width_derived": MINDFORMERS | {"intermediate_size": None, "multiple_of": 8},
        "packed": HUGGING_FACE | {"use_eod_attn_mask_compression": True},
        "stretched": MINDFORMERS | {"extend_method": "PI", "scaling_factor": 4.0},
        "growing": MINDFORMERS | {"extend_method": "DYNAMIC_NTK", "is_dynamic": True, "max_position_embedding": 8},
        "experts": MINDFORMERS | {"moe_config": EXPERTS},
        "routed": MINDFORMERS | {"moe_config": ROUTED},
        "grouped": MINDFORMERS | {"moe_config": EXPERTS | GROUPS | {"balance_via_topk_bias": True}},
        "parallel": HUGGING_FACE | {"num_hidden_layers": 4, "qkv_concat": True, "parallel_config": DEGREES},
        "parallel_experts": MINDFORMERS | {"moe_config": EXPERTS, "parallel_config": {"model_parallel": 2}},
        "sharded": MINDFORMERS | SHARDED | {"gradient_accumulation_shard": False},
        "accumulated": MINDFORMERS | SHARDED | {"gradient_accumulation_steps": 2},
        "ring": HUGGING_FACE | {"parallel_config": {"context_parallel": 2}},
        "swapped": HUGGING_FACE | {"parallel_config": {"swap": {"swap": True}}},
    },
    DeepseekV2Config: {"dense": DENSE, "moe": MOE, "grouped": GROUPED, "noaux": NOAUX, "mha": MHA},
    DeepseekVLV2Config: {
        "vl2": VL2,
        "linear": VL2 | {"projector_config": VL2["projector_config"] | {"projector_type": "linear"}},
        "recomputed": VL2 | {"vision_config": VL2["vision_config"] | {"use_checkpoint": True}},
    },
    ImageGPTConfig: {"tiny": TINY},
}
"""Configs that between them switch everything on."""

LLAMA_VALUES: dict[str, Any] = {
    "batch_size": 6,
    "seq_length": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "intermediate_size": 64,
    "vocab_size": 80,
    "multiple_of": 128,
    "ffn_dim_multiplier": 2.0,
    "rms_norm_eps": 0.1,
    "bos_token_id": 9,
    "eos_token_id": [4, 7],
    "pad_token_id": 7,
    "ignore_token_id": 3,
    "rope_theta": 100.0,
    "compute_dtype": "bfloat16",
    "layernorm_compute_type": "float16",
    "softmax_compute_type": "float16",
    "rotary_dtype": "float16",
    "param_init_type": "float16",
    "residual_dtype": "float16",
    "embedding_init_type": "float16",
    "norm_init_type": "float16",
    "qkv_has_bias": True,
    "qkv_concat": True,
    "attn_proj_has_bias": True,
    "use_past": True,
    "extend_method": "NTK",
    "scaling_factor": 2.0,
    "is_dynamic": True,
    "use_rope_slice": True,
    "use_flash_attention": False,
    "use_ring_attention": True,
    "use_attn_mask_compression": True,
    "use_eod_attn_mask_compression": True,
    "parallel_optimizer": True,
    "fine_grain_interleave": 2,
    "pp_interleave_num": 2,
    "offset": [1, -1],
    "initializer_range": 0.05,
    "checkpoint_name_or_path": "/nowhere",
    "repetition_penalty": 1.5,
    "max_decode_length": 77,
    "block_size": 32,
    "num_blocks": 40,
    "top_k": 11,
    "top_p": 0.5,
    "do_sample": True,
    "quant_config": {"quant_method": "int8_kv"},
    "tie_word_embeddings": True,
    "llm_backend": "eager",
    "fused_rms_norm": True,
    "input_sliced_sig": True,
    "rmsnorm_compute_2d": True,
    "chunk_prefill": True,
    "calculate_per_token_loss": False,
    "pipeline_stage": {"start_stage": 1, "stage_num": 1, "offset": 0},
    "return_hidden_states": True,
    "attention_dropout": 0.5,
    "pretraining_tp": 2,
    "use_cache": False,
    "reset_position_ids": True,
    "enable_parallel_optimizer": True,
    "gradient_accumulation_shard": False,
    "gradient_accumulation_steps": 4,
    "parallel_config.data_parallel": 4,
    "parallel_config.model_parallel": 2,
    "parallel_config.context_parallel": 2,
    "parallel_config.context_parallel_algo": "ulysses_cp",
    "parallel_config.ulysses_degree_in_cp": None,  # needs "hybrid_cp" beside it: see `ULYSSES`
    "parallel_config.expert_parallel": 2,
    "parallel_config.pipeline_stage": 4,
    "parallel_config.micro_batch_num": 8,
    "parallel_config.seq_split_num": 2,
    "parallel_config.use_seq_parallel": True,
    "parallel_config.vocab_emb_dp": False,
    "parallel_config.gradient_aggregation_group": 2,
    "parallel_config.mem_coeff": 0.5,
    "parallel_config.optimizer_shard": True,
    "parallel_config.recompute.recompute": True,
    "parallel_config.recompute.select_recompute": True,
    "parallel_config.recompute.select_comm_recompute": True,
    "parallel_config.recompute.select_recompute_exclude": True,
    "parallel_config.recompute.select_comm_recompute_exclude": True,
    "parallel_config.recompute.parallel_optimizer_comm_recompute": True,
    "parallel_config.recompute.mp_comm_recompute": False,
    "parallel_config.recompute.recompute_slice_activation": True,
    "parallel_config.swap.swap": True,
    "parallel_config.swap.default_prefetch": 3,
    "parallel_config.swap.layer_swap": [{"backward_prefetch": 1, "layers": True}],
    "parallel_config.swap.op_swap": [{"op_name": ".*", "backward_prefetch": 1, "layers": True}],
    "moe_config.expert_num": 8,
    "moe_config.num_experts_chosen": 1,
    "moe_config.routing_policy": "TopkRouterV2",
    "moe_config.capacity_factor": 2.0,
    "moe_config.enable_sdrop": True,
    "moe_config.norm_topk_prob": False,
    "moe_config.routed_scaling_factor": 2.0,
    "moe_config.use_gating_sigmoid": True,
    "moe_config.topk_method": "greedy",
    "moe_config.n_group": 1,
    "moe_config.topk_group": 2,
    "moe_config.balance_via_topk_bias": True,
    "moe_config.topk_bias_update_rate": 0.1,
    "moe_config.aux_loss_factor": 0.5,
    "moe_config.aux_loss_types": ["expert"],
    "moe_config.aux_loss_factors": [0.9],
    "moe_config.z_loss_factor": 0.1,
    "moe_config.router_dense_type": "float16",
    "moe_config.shared_expert_num": 2,
    "moe_config.use_shared_expert_gating": True,
    "moe_config.expert_model_parallel": 1,
    "moe_config.expert_group_size": 2,
    "moe_config.use_gmm": True,
    "moe_config.callback_moe_droprate": True,
    "moe_config.cold_token_percent": 0.5,
    "moe_config.comp_comm_parallel": True,
    "moe_config.comp_comm_parallel_degree": 4,
    "moe_config.cur_layer": 1,
    "moe_config.dispatch_global_max_bs": 8,
    "moe_config.enable_cold_hot_expert": True,
    "moe_config.enable_deredundency": True,
    "moe_config.enable_gmm_safe_tokens": True,
    "moe_config.ep_extend_tp": False,
    "moe_config.first_k_dense_replace": 2,
    "moe_config.group_wise_a2a": True,
    "moe_config.hot_expert_num": 1,
    "moe_config.max_router_load": 8,
    "moe_config.moe_intermediate_size": 8,
    "moe_config.moe_module_name": "moe",
    "moe_config.moe_shared_expert_overlap": True,
    "moe_config.npu_nums_per_device": 8,
    "moe_config.save_token_distribution": True,
    "moe_config.update_step": 10,
    "moe_config.use_allgather_dispatcher": True,
    "moe_config.use_fused_ops_permute": True,
    "moe_config.use_fused_ops_topkrouter": True,
}
V2_VALUES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 40,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "ep_size": 2,
    "routed_scaling_factor": 2.0,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "topk_method": "noaux_tc",
    "n_group": 2,
    "topk_group": 1,
    "moe_layer_freq": 2,
    "first_k_dense_replace": 2,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "aux_loss_alpha": 0.5,
    "seq_aux": False,
    "topk_bias_update_rate": 0.1,
    "hidden_act": "gelu",
    "gated_mlp": False,
    "ffn_dropout": 0.5,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
    "rms_norm_eps": 0.1,
    "use_cache": False,
    "pad_token_id": 3,
    "bos_token_id": 5,
    "eos_token_id": [1, 4],
    "pretraining_tp": 2,
    "tie_word_embeddings": True,
    "rope_theta": 100.0,
    "rope_scaling": LINEAR,
    "rope_parameters": LINEAR,
    "attention_bias": True,
    "attention_dropout": 0.5,
    "use_mla": False,
    "qkv_concat": True,
}
VL2_VALUES: dict[str, Any] = {
    "tile_tag": "1D",
    "global_view_pos": "tail",
    "candidate_resolutions": ((TILE, TILE), (3 * TILE, TILE), (2 * TILE, TILE)),
    "vision_batch_size": 1,
    "vision_config.model_name": "other",
    "vision_config.image_size": 12,
    "vision_config.patch_size": 4,
    "vision_config.layers": 3,
    "vision_config.heads": 4,
    "vision_config.mlp_ratio": 3.0,
    "vision_config.global_pool": "avg",
    "vision_config.class_token": True,
    "vision_config.num_classes": 5,
    "vision_config.use_checkpoint": True,
    "vision_config.weight_init": "jax",
    "vision_config.deterministic": True,
    "vision_config.num_recomputing_layers": 1,
    "projector_config.projector_type": "mlp_gelu",
    "projector_config.depth": 3,
    "projector_config.mlp_ratio": 2,
    "projector_config.downsample_ratio": 1,
    "projector_config.token_pooling": True,
    "projector_config.use_bias": False,
    "language_config.num_hidden_layers": 3,
    "language_config.num_key_value_heads": 4,
    "language_config.n_group": 2,
}
IMAGEGPT_VALUES: dict[str, Any] = {
    "vocab_size": 33,
    "n_positions": 30,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 7,
    "activation_function": "relu",
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "attn_pdrop": 0.5,
    "layer_norm_epsilon": 0.5,
    "initializer_range": 0.05,
    "scale_attn_weights": False,
    "use_cache": False,
    "tie_word_embeddings": True,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "pad_token_id": 3,
    "bos_token_id": 5,
    "eos_token_id": 4,
}
VALUES: dict[Any, dict[str, Any]] = {
    LlamaConfig: LLAMA_VALUES,
    DeepseekV2Config: V2_VALUES,
    DeepseekVLV2Config: VL2_VALUES,
    ImageGPTConfig: IMAGEGPT_VALUES,
}
"""Another value of every field."""
ONE_VALUE = {
    LlamaConfig: {"hidden_act", "mlp_bias", "dialect", "parallel_config.ulysses_degree_in_cp"},
    ImageGPTConfig: {"add_cross_attention"},
    DeepseekVLV2Config: {
        "vision_config.width",
        "vision_config.ignore_head",
        "projector_config.input_dim",
        "projector_config.n_embed",
    },
}
"""Fields that take one value, or another only together with others: `dialect` decides defaults, and is tested there."""


def changed(base: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The keys of `base` with another value of a field, which may lie inside a part."""
    part, _, inside = name.partition(".")
    return base | {part: changed(base.get(part) or {}, inside, value) if inside else value}


@functools.cache
def seen_of_base(family: Any, base: str) -> Seen:
    return seen_of(family(**BASES[family][base]))


def names_of(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields, those of parts included."""
    own = {each.name for each in fields(config)} - {each.name for each in fields(PreTrainedConfig)} - {"unknown_keys"}
    for name in own | {"tie_word_embeddings"} & {each.name for each in fields(config)}:
        value = getattr(config, name)
        if hasattr(value, "__dataclass_fields__") and not isinstance(config, DeepseekVLV2Config):
            yield from names_of(value, f"{prefix}{name}.")
        elif hasattr(value, "__dataclass_fields__"):
            yield from () if name == "language_config" else names_of(value, f"{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("family", VALUES)
def test_no_field_is_forgotten(family):
    tried = {name for name in VALUES[family] if not name.startswith("language_config.")}
    assert set(names_of(family())) == tried | ONE_VALUE.get(family, set())


ABOUT: dict[str, set[str]] = {
    "width_derived": {"hidden_size", "multiple_of", "ffn_dim_multiplier", "intermediate_size"},
    "packed": {"seq_length", "max_position_embeddings", "eos_token_id", "reset_position_ids", "pad_token_id"},
    "stretched": {"extend_method", "scaling_factor", "rope_theta", "max_position_embeddings"},
    "growing": {"is_dynamic", "max_position_embeddings", "seq_length", "rope_theta"},
    "routed": {"moe_config", "calculate_per_token_loss"},
    "grouped": {"moe_config"},
    "parallel_experts": {"parallel_optimizer", "fine_grain_interleave"},
    "ring": {"use_ring_attention"},
    "swapped": set(),
}
"""The fields, parts apart, that a base is there for; the other bases are tried with every field."""


def switches(base: str, keys: dict[str, Any], name: str) -> bool:
    """Whether a base is worth a look for a field: one of a part is tried where the part is said and where it is not."""
    part, _, inside = name.partition(".")
    if base in ABOUT and not inside:
        return name in ABOUT[base]
    return not inside or part in keys or base in ("hugging_face", "mindformers")


CASES = [
    pytest.param(family, name, id=f"{family.__name__}.{name}")
    for family, values in VALUES.items()
    for name in values
    if name not in ONE_VALUE.get(family, ())
]


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    "bases", [pytest.param(2, id="two_bases"), pytest.param(99, id="all_bases", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_field_acts_or_is_listed(family, name, bases):
    tried = []
    for base, keys in BASES[family].items():
        if len(tried) == bases or not switches(base, keys, name):
            continue
        try:
            config = family(**changed(keys, name, VALUES[family][name]))
        except ConfigError:
            continue
        plain = family(**keys)
        if config == plain:
            continue
        seen = difference(seen_of_base(family, base), seen_of(config))
        listed = name in config.fields_without_effect()
        assert bool(seen) != listed, f"{base}: listed {listed}, seen in {seen}"
        tried.append(base)
    assert tried, "no base takes this value"


def test_the_ulysses_degree_waits_for_the_trainer():
    degrees = {"context_parallel": 2, "context_parallel_algo": "hybrid_cp"}
    plain, split = (
        LlamaConfig(**HUGGING_FACE | {"parallel_config": degrees | more}) for more in ({}, {"ulysses_degree_in_cp": 2})
    )
    assert not difference(seen_of(plain), seen_of(split))
    assert "parallel_config.ulysses_degree_in_cp" in split.fields_without_effect()


def test_what_waits_for_the_trainer_is_a_field():
    assert OF_SEVERAL_RANKS.keys() <= set(names_of(LlamaConfig()))

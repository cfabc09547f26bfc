"""The rules between a Llama's fields; each raises `ConfigError` with the rule and both values."""

from modelwright.configs.activations import SILU_NAMES
from modelwright.configs.base import MOST_LAYERS, require, require_divides, require_experts, require_one_of
from modelwright.families.llama.config.fields import LlamaFields
from modelwright.families.llama.config.names import DIALECTS, DOUBLE, DTYPE_FIELDS, DTYPES


def check_llama(config: LlamaFields) -> None:
    """Every rule about the model itself; those of the views are checked where they are built."""
    _check_ranges(config)
    _check_shape(config)
    _check_attention(config)
    _check_parallel(config)


def _check_ranges(config: LlamaFields) -> None:
    require_one_of("dialect", config.dialect, DIALECTS)
    config.require_at_least(1, "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config.require_at_least(1, "max_position_embeddings", "intermediate_size", "vocab_size", "multiple_of")
    config.require_at_least(1, "fine_grain_interleave", "pp_interleave_num", "pretraining_tp")
    config.require_at_least(0, "initializer_range")
    config.require_at_most(MOST_LAYERS, "num_hidden_layers")
    require_experts("expert_num", config.moe_config.expert_num, config.num_hidden_layers)
    for name in ("rms_norm_eps", "ffn_dim_multiplier"):
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} must be above 0, got {value}")
    allowed = (*DTYPES, DOUBLE) if config.param_init_type == DOUBLE else DTYPES  # a model moved by .double()
    for name in DTYPE_FIELDS:
        if (dtype := getattr(config, name)) is not None:
            require_one_of(name, dtype, allowed)
    pad, rows = config.pad_token_id, config.vocab_size
    require(pad is None or 0 <= pad < rows, f"pad_token_id ({pad}) must be below vocab_size ({rows})")


def _check_shape(config: LlamaFields) -> None:
    if not config.states_head_dim:
        require_divides("num_attention_heads", config.num_attention_heads, "hidden_size", config.hidden_size)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    require_divides("num_key_value_heads", groups, "num_attention_heads", heads)
    name = "head_dim" if config.states_head_dim else "hidden_size / num_attention_heads"
    require(config.head_dim % 2 == 0, f"RoPE turns pairs: {name} ({config.head_dim}) must be even")
    require(config.hidden_act in SILU_NAMES, f'hidden_act must be "silu" in a Llama, got "{config.hidden_act}"')
    require(not config.mlp_bias, "mlp_bias must be False: the feed-forward layers of a Llama have no biases")
    widths = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    widths |= {"vocab_size": config.vocab_size, "num_key_value_heads * head_dim": groups * config.head_dim}
    widths |= {"num_attention_heads * head_dim": heads * config.head_dim}
    for name, width in widths.items():
        require_divides("pretraining_tp", config.pretraining_tp, name, width)


def _check_attention(config: LlamaFields) -> None:
    require(0 <= config.attention_dropout < 1, f"attention_dropout must be in [0, 1), got {config.attention_dropout}")
    config.rope  # noqa: B018  # checked as it is built
    require(
        config.extend_method != "DYNAMIC_NTK" or config.is_dynamic,
        'extend_method "DYNAMIC_NTK" needs is_dynamic=True, got is_dynamic=False',
    )
    flash, context = config.use_flash_attention, config.parallel_config.context_parallel
    require(
        not config.use_ring_attention or (flash and context > 1),
        f"use_ring_attention (True) needs use_flash_attention=True and context_parallel above 1, got "
        f"use_flash_attention={flash} and context_parallel={context}",
    )
    packed = config.use_eod_attn_mask_compression
    require(
        not packed or len(config.eos_token_ids) > 0,
        "use_eod_attn_mask_compression (True) needs an eos_token_id to end documents, got None",
    )
    require(
        packed or not config.reset_position_ids,
        "reset_position_ids (True) needs use_eod_attn_mask_compression=True, got False",
    )


def _check_parallel(config: LlamaFields) -> None:
    degrees = config.parallel_config
    model, split = degrees.model_parallel, degrees.model_parallel * degrees.ulysses_degree
    for name in ("num_attention_heads", "num_key_value_heads"):
        require_divides("model_parallel x the ulysses degree", split, name, getattr(config, name))
    for name in ("hidden_size", "intermediate_size"):
        require_divides("model_parallel", model, name, getattr(config, name))
    experts = config.moe_config
    if config.has_experts:
        require_divides("expert_parallel", degrees.expert_parallel, "expert_num", experts.expert_num)
    require(
        experts.expert_model_parallel in (None, 1, model),
        f"expert_model_parallel ({experts.expert_model_parallel}) must be 1 or model_parallel ({model})",
    )

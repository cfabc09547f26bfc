"""The two vocabularies of a Llama config as tables: which name means which field, and the defaults of each dialect."""

from typing import Any

HUGGING_FACE = "hugging_face"
MINDFORMERS = "mindformers"
DIALECTS = (HUGGING_FACE, MINDFORMERS)
"""Whose defaults a config takes for what it leaves out; its `dialect` says which, never the names it uses."""

ALIASES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "max_position_embedding": "max_position_embeddings",
    "theta": "rope_theta",
    "init_method_std": "initializer_range",
}
"""MindFormers' name of a field to its name here, which is Hugging Face's."""

MINDFORMERS_FIELDS: dict[str, Any] = {
    "batch_size": 1,
    "seq_length": 2048,
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "n_kv_heads": None,
    "max_position_embedding": None,
    "intermediate_size": None,
    "vocab_size": 32000,
    "multiple_of": 256,
    "ffn_dim_multiplier": None,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "ignore_token_id": -100,
    "theta": 10000.0,
    "compute_dtype": "float16",
    "layernorm_compute_type": "float32",
    "softmax_compute_type": "float32",
    "rotary_dtype": "float32",
    "param_init_type": "float16",
    "residual_dtype": None,
    "embedding_init_type": None,
    "qkv_has_bias": False,
    "qkv_concat": False,
    "attn_proj_has_bias": False,
    "parallel_config": None,
    "moe_config": None,
    "use_past": False,
    "extend_method": "None",
    "scaling_factor": 1.0,
    "is_dynamic": False,
    "use_rope_slice": False,
    "use_flash_attention": False,
    "use_ring_attention": False,
    "use_attn_mask_compression": False,
    "use_eod_attn_mask_compression": False,
    "parallel_optimizer": False,
    "fine_grain_interleave": 1,
    "pp_interleave_num": 1,
    "offset": 0,
    "init_method_std": 0.01,
    "checkpoint_name_or_path": "",
    "repetition_penalty": 1.0,
    "max_decode_length": 1024,
    "block_size": 16,
    "num_blocks": 512,
    "top_k": 5,
    "top_p": 1.0,
    "do_sample": True,
    "quant_config": None,
    "tie_word_embeddings": False,
    "llm_backend": "",
    "fused_rms_norm": True,
    "input_sliced_sig": False,
    "rmsnorm_compute_2d": False,
    "chunk_prefill": False,
    "calculate_per_token_loss": False,
    "pipeline_stage": None,
    "return_hidden_states": False,
}
"""The 61 fields of MindFormers' `LlamaConfig` with their defaults; None for the sub-configs means theirs."""

PLAIN_DEFAULTS: dict[str, Any] = {
    name: default
    for name, default in MINDFORMERS_FIELDS.items()
    if default is not None and name not in ("theta", "extend_method", "scaling_factor")
}
"""MindFormers' defaults that are written out: not None, which is resolved, and not RoPE, which has several views."""
ROPE_VIEWS = ("rope_parameters", "rope_scaling")
HUGGING_FACE_DEFAULTS: dict[str, Any] = {"intermediate_size": 11008, "max_position_embeddings": 2048}
"""Hugging Face's defaults of what MindFormers derives; its others are the class's."""
KIN: dict[str, str] = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2"}
"""The `model_type` of each of Hugging Face's models that is a Llama here, and what its architectures begin with."""
NO_KIN = "modelwright_llama"
"""The `model_type` of a Llama whose experts no model of Hugging Face's has, so that none is taken for it."""
MIXTRAL: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "output_router_logits": False,
    "router_jitter_noise": 0.0,
}
"""What Mixtral says of its experts, with its defaults."""
KIN_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "mixtral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}
"""Defaults of Hugging Face that differ from its Llama's."""
WRITTEN = (
    "architectures",
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "pretraining_tp",
    "rms_norm_eps",
    "rope_parameters",
    "rope_theta",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
"""What a `config.json` says of a config that was read from none, beside what its dialect would not take for granted."""
NONE_MEANS: dict[str, Any] = {
    "checkpoint_name_or_path": "",
    "extend_method": "None",
    "llm_backend": "",
    "qkv_concat": False,
    "top_k": 0,
}
DTYPES = ("float32", "float16", "bfloat16")
"""The types that a Llama stores and computes in."""
DOUBLE = "float64"
"""What a model's weights may be stored in as a whole, and its other types then too: `.double()` makes such a model."""
DTYPE_FIELDS = (
    "compute_dtype",
    "embedding_init_type",
    "layernorm_compute_type",
    "norm_init_type",
    "param_init_type",
    "residual_dtype",
    "rotary_dtype",
    "softmax_compute_type",
)

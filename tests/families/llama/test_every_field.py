"""Every one of MindFormers' 61 fields, with the test that fails when it is ignored."""

import ast
from pathlib import Path
from typing import Any

import pytest

from modelwright import LlamaConfig
from modelwright.families.llama.config.names import MINDFORMERS_FIELDS

TESTS = Path(__file__).parents[2]
ACTS = "families/llama/test_fields.py"
WEIGHTS = f"{ACTS}::test_it_changes_the_weights"
LOGITS = f"{ACTS}::test_it_changes_the_logits_of_the_same_weights"
LOSS = f"{ACTS}::test_the_loss_counts_what_its_fields_say"
HERE = "families/llama/test_every_field.py"
ACTS_OR_IS_LISTED = "configs/test_effects.py::test_a_field_acts_or_is_listed"

FAILS_WHEN_IGNORED = {
    "batch_size": ACTS_OR_IS_LISTED,
    "seq_length": ACTS_OR_IS_LISTED,
    "hidden_size": WEIGHTS,
    "num_layers": WEIGHTS,
    "num_heads": WEIGHTS,
    "n_kv_heads": WEIGHTS,
    "max_position_embedding": f"{HERE}::test_max_position_embedding_bounds_the_extension",
    "intermediate_size": WEIGHTS,
    "vocab_size": WEIGHTS,
    "multiple_of": WEIGHTS,
    "ffn_dim_multiplier": WEIGHTS,
    "rms_norm_eps": LOGITS,
    "bos_token_id": ACTS_OR_IS_LISTED,
    "eos_token_id": ACTS_OR_IS_LISTED,
    "pad_token_id": LOGITS,
    "ignore_token_id": LOSS,
    "theta": LOGITS,
    "compute_dtype": LOGITS,
    "layernorm_compute_type": LOGITS,
    "softmax_compute_type": LOGITS,
    "rotary_dtype": LOGITS,
    "param_init_type": LOGITS,
    "residual_dtype": LOGITS,
    "embedding_init_type": LOGITS,
    "qkv_has_bias": WEIGHTS,
    "qkv_concat": WEIGHTS,
    "attn_proj_has_bias": WEIGHTS,
    "parallel_config": ACTS_OR_IS_LISTED,
    "moe_config": WEIGHTS,
    "use_past": ACTS_OR_IS_LISTED,
    "extend_method": LOGITS,
    "scaling_factor": LOGITS,
    "is_dynamic": ACTS_OR_IS_LISTED,
    "use_rope_slice": f"{ACTS}::test_use_rope_slice_picks_the_rotation",
    "use_flash_attention": f"{ACTS}::test_use_flash_attention_picks_the_kernel",
    "use_ring_attention": ACTS_OR_IS_LISTED,
    "use_attn_mask_compression": f"{ACTS}::test_mask_compression_attends_purely_causally",
    "use_eod_attn_mask_compression": LOGITS,
    "parallel_optimizer": ACTS_OR_IS_LISTED,
    "fine_grain_interleave": ACTS_OR_IS_LISTED,
    "pp_interleave_num": ACTS_OR_IS_LISTED,
    "offset": ACTS_OR_IS_LISTED,
    "init_method_std": f"{ACTS}::test_new_weights_spread_as_init_method_std_says",
    "checkpoint_name_or_path": f"{ACTS}::test_checkpoint_name_or_path_is_loaded_where_a_model_is_built_from_its_config",
    "repetition_penalty": ACTS_OR_IS_LISTED,
    "max_decode_length": ACTS_OR_IS_LISTED,
    "block_size": ACTS_OR_IS_LISTED,
    "num_blocks": ACTS_OR_IS_LISTED,
    "top_k": ACTS_OR_IS_LISTED,
    "top_p": ACTS_OR_IS_LISTED,
    "do_sample": ACTS_OR_IS_LISTED,
    "quant_config": ACTS_OR_IS_LISTED,
    "tie_word_embeddings": f"{ACTS}::test_a_tied_head_is_the_embedding",
    "llm_backend": ACTS_OR_IS_LISTED,
    "fused_rms_norm": LOGITS,
    "input_sliced_sig": f"{ACTS}::test_input_sliced_sig_takes_labels_as_aligned",
    "rmsnorm_compute_2d": f"{ACTS}::test_rmsnorm_compute_2d_flattens_tokens_between_attentions",
    "chunk_prefill": ACTS_OR_IS_LISTED,
    "calculate_per_token_loss": f"{ACTS}::test_calculate_per_token_loss_divides_by_the_global_count",
    "pipeline_stage": ACTS_OR_IS_LISTED,
    "return_hidden_states": f"{ACTS}::test_return_hidden_states_adds_the_last_normed_one",
}

BASE: dict[str, Any] = {"dialect": "mindformers"}
BASE |= {"hidden_size": 32, "num_heads": 4, "num_layers": 4, "vocab_size": 64, "intermediate_size": 48}


def test_max_position_embedding_bounds_the_extension():
    def table(**fields):
        rope = LlamaConfig(**BASE, seq_length=64, extend_method="DYNAMIC_NTK", is_dynamic=True, **fields).rope
        return rope.max_position_embeddings, rope.scaling.original_max_position_embeddings

    assert table(max_position_embedding=32)[1] == 32
    assert table(max_position_embedding=128) == (128, 128)
    assert table()[1] == table(max_position_embedding=0)[1] == 64


def test_every_field_has_a_test():
    assert len(FAILS_WHEN_IGNORED) == 61
    assert set(FAILS_WHEN_IGNORED) == set(MINDFORMERS_FIELDS)


@pytest.mark.parametrize("field", FAILS_WHEN_IGNORED)
def test_the_test_is_there_and_is_about_the_field(field):
    file, test = FAILS_WHEN_IGNORED[field].split("::")
    text = (TESTS / file).read_text(encoding="utf-8")
    functions = {each.name: each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef)}
    assert test in functions
    assert f'"{field}"' in text or field in ast.unparse(functions[test])

"""Every one of MindFormers' 61 fields, with the test that fails when it is ignored; run settings are tested here."""

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
VIEW = f"{HERE}::test_a_run_setting_reaches_its_view"

FAILS_WHEN_IGNORED = {
    "batch_size": VIEW,
    "seq_length": VIEW,
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
    "bos_token_id": VIEW,
    "eos_token_id": VIEW,
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
    "parallel_config": VIEW,
    "moe_config": WEIGHTS,
    "use_past": VIEW,
    "extend_method": LOGITS,
    "scaling_factor": LOGITS,
    "is_dynamic": VIEW,
    "use_rope_slice": f"{ACTS}::test_use_rope_slice_picks_the_rotation",
    "use_flash_attention": f"{ACTS}::test_use_flash_attention_picks_the_kernel",
    "use_ring_attention": VIEW,
    "use_attn_mask_compression": f"{ACTS}::test_mask_compression_attends_purely_causally",
    "use_eod_attn_mask_compression": LOGITS,
    "parallel_optimizer": VIEW,
    "fine_grain_interleave": VIEW,
    "pp_interleave_num": VIEW,
    "offset": VIEW,
    "init_method_std": f"{ACTS}::test_new_weights_spread_as_init_method_std_says",
    "checkpoint_name_or_path": f"{ACTS}::test_checkpoint_name_or_path_is_loaded_at_build",
    "repetition_penalty": VIEW,
    "max_decode_length": VIEW,
    "block_size": VIEW,
    "num_blocks": VIEW,
    "top_k": VIEW,
    "top_p": VIEW,
    "do_sample": VIEW,
    "quant_config": VIEW,
    "tie_word_embeddings": f"{ACTS}::test_a_tied_head_is_the_embedding",
    "llm_backend": VIEW,
    "fused_rms_norm": LOGITS,
    "input_sliced_sig": f"{ACTS}::test_input_sliced_sig_takes_labels_as_aligned",
    "rmsnorm_compute_2d": f"{ACTS}::test_rmsnorm_compute_2d_flattens_tokens_between_attentions",
    "chunk_prefill": VIEW,
    "calculate_per_token_loss": f"{ACTS}::test_calculate_per_token_loss_divides_by_the_global_count",
    "pipeline_stage": VIEW,
    "return_hidden_states": f"{ACTS}::test_return_hidden_states_adds_the_last_normed_one",
}

BASE = {"hidden_size": 32, "num_heads": 4, "num_layers": 4, "vocab_size": 64, "intermediate_size": 48}
STAGES = {"parallel_config": {"pipeline_stage": 2, "micro_batch_num": 4}}
PART = {"start_stage": 1, "stage_num": 1, "offset": 0}
RING = {"use_flash_attention": True, "parallel_config": {"context_parallel": 2}}
RUN_SETTINGS: dict[
    str, tuple[Any, dict[str, Any], str, Any]
] = {  # value, what it needs, the view's entry, what it says
    "batch_size": (6, {}, "engine.batch_size", 6),
    "seq_length": (96, {}, "engine.seq_length", 96),
    "bos_token_id": (9, {}, "sampling.bos_token_id", 9),
    "eos_token_id": ([4, 7], {}, "sampling.eos_token_ids", (4, 7)),
    "parallel_config": ({"model_parallel": 2}, {}, "parallel.config.model_parallel", 2),
    "use_past": (True, {}, "engine.use_past", True),
    "is_dynamic": (True, {}, "engine.is_dynamic", True),
    "use_ring_attention": (True, RING, "parallel.ring", True),
    "parallel_optimizer": (True, {}, "parallel.shard_optimizer", True),
    "fine_grain_interleave": (2, {}, "parallel.token_chunks", 2),
    "pp_interleave_num": (2, STAGES, "parallel.stage_layers", ((1, 1), (1, 1))),
    "offset": ([1, -1], STAGES, "parallel.stage_layers", ((3, 1),)),
    "repetition_penalty": (1.2, {}, "sampling.repetition_penalty", 1.2),
    "max_decode_length": (77, {}, "sampling.max_decode_length", 77),
    "block_size": (32, {}, "engine.block_size", 32),
    "num_blocks": (40, {}, "engine.num_blocks", 40),
    "top_k": (11, {}, "sampling.top_k", 11),
    "top_p": (0.5, {}, "sampling.top_p", 0.5),
    "do_sample": (False, {}, "sampling.do_sample", False),
    "quant_config": ({"quant_method": "int8_kv"}, {}, "engine.quantization.kv_cache", "int8"),
    "llm_backend": ("compile", {}, "engine.backend", "compile"),
    "chunk_prefill": (True, {"use_past": True}, "engine.chunk_prefill", True),
    "pipeline_stage": (PART, STAGES, "parallel.first_stage", 1),
}


@pytest.mark.parametrize("name", RUN_SETTINGS)
def test_a_run_setting_reaches_its_view(name):
    value, needed, entry, said = RUN_SETTINGS[name]
    assert looked_up(LlamaConfig(**BASE | needed | {name: value}), entry) == said
    assert looked_up(LlamaConfig(**BASE | needed), entry) != said


def looked_up(config: LlamaConfig, entry: str) -> Any:
    found: Any = config
    for name in entry.split("."):
        found = getattr(found, name, None)
    return found


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

"""Every field of every config does what it says: the test that fails where one is ignored, and none is forgotten.

======================================  =====================================================================
SHAPES                                  another value changes the names or shapes of the weights
NUMBERS                                 another value changes the logits of the same weights
ELSEWHERE                               the named test pins its effect
LABELS                                  says something to people only
======================================  =====================================================================
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config, MlpProjectorConfig, VisionEncoderConfig
from modelwright.families.deepseek_vl2.siglip import VisionTower
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, TILE, VL2, YARN, tiny_v2, tiny_vl2, tokens, vl2_inputs

TESTS = Path(__file__).parents[2]
HEAD = {"ignore_head": False}
TOWER = VL2["vision_config"]

SHAPES: dict[type, dict[str, tuple[Any, dict[str, Any]]]] = {
    DeepseekV2Config: {
        "vocab_size": (80, DENSE),
        "hidden_size": (40, DENSE),
        "intermediate_size": (64, DENSE),
        "moe_intermediate_size": (24, MOE),
        "num_hidden_layers": (3, DENSE),
        "num_attention_heads": (2, DENSE),
        "num_key_value_heads": (4, MHA),
        "n_shared_experts": (2, MOE),
        "n_routed_experts": (4, MOE),
        "kv_lora_rank": (8, DENSE),
        "q_lora_rank": (None, DENSE),
        "qk_nope_head_dim": (4, DENSE),
        "qk_rope_head_dim": (4, DENSE),
        "v_head_dim": (4, DENSE),
        "moe_layer_freq": (2, MOE | {"first_k_dense_replace": 0}),
        "first_k_dense_replace": (0, MOE),
        "gated_mlp": (False, DENSE),
        "attention_bias": (True, DENSE),
        "use_mla": (False, DENSE),
        "qkv_concat": (True, MHA),
    },
    VisionEncoderConfig: {
        "image_size": (12, {}),
        "patch_size": (4, {}),
        "width": (8, {}),
        "layers": (1, {}),
        "mlp_ratio": (3.0, {}),
        "ignore_head": (False, {}),
        "global_pool": ("avg", HEAD),
        "class_token": (True, {}),
        "num_classes": (5, HEAD),
    },
    MlpProjectorConfig: {
        "projector_type": ("linear", {}),
        "input_dim": (8, {}),
        "n_embed": (24, {}),
        "depth": (3, {}),
        "mlp_ratio": (2, {}),
        "downsample_ratio": (4, {}),
        "token_pooling": (True, {}),
        "use_bias": (False, {}),
    },
    DeepseekVLV2Config: {
        "vision_config": (VL2["vision_config"] | {"layers": 1}, {}),
        "projector_config": (VL2["projector_config"] | {"depth": 3}, {}),
        "language_config": (DENSE, {}),
        "tile_tag": ("1D", {}),
        "candidate_resolutions": ([[TILE, TILE], [3 * TILE, TILE]], {"tile_tag": "1D"}),
    },
}

NUMBERS: dict[type, dict[str, tuple[Any, dict[str, Any]]]] = {
    DeepseekV2Config: {
        "num_experts_per_tok": (3, MOE),
        "routed_scaling_factor": (2.0, MOE),
        "topk_method": ("greedy", GROUPED | {"topk_group": 1}),
        "n_group": (2, GROUPED | {"topk_group": 1}),
        "topk_group": (1, GROUPED),
        "norm_topk_prob": (False, NOAUX),
        "scoring_func": ("sigmoid", MOE),
        "hidden_act": ("gelu", DENSE),
        "max_position_embeddings": (16, DENSE | {"rope_scaling": {"type": "dynamic", "factor": 2}}),
        "rms_norm_eps": (0.1, DENSE),
        "rope_theta": (100.0, DENSE),
        "rope_scaling": ({"type": "linear", "factor": 4}, DENSE),
        "rope_parameters": ({"rope_type": "linear", "factor": 4, "rope_theta": 10000.0}, DENSE),
    },
    VisionEncoderConfig: {"heads": (4, {})},
    MlpProjectorConfig: {},
    DeepseekVLV2Config: {},
}

ELSEWHERE: dict[type, dict[str, str]] = {
    DeepseekV2Config: {
        "ep_size": "parallel/test_slicing.py::test_experts_are_shared_by_as_many_ranks_as_the_config_says",
        "aux_loss_alpha": "hf/test_training.py::test_alpha_scales_the_balance_gradient",
        "seq_aux": "hf/test_training.py::test_the_balance_loss_is_alpha_times_its_formula",
        "topk_bias_update_rate": "hf/test_training.py::test_the_bias_moves_against_the_load",
        "ffn_dropout": "hf/test_training.py::test_dropout_acts_in_training_only_and_follows_the_seed",
        "attention_dropout": "hf/test_training.py::test_dropout_acts_in_training_only_and_follows_the_seed",
        "initializer_range": "families/deepseek_v2/test_fields.py::test_new_weights_spread_as_initializer_range_says",
        "use_cache": "hf/test_loading.py::test_fields_of_the_config_are_overridden",
        "pad_token_id": "hf/test_forward.py::test_a_classifier_reads_the_last_token_that_is_not_padding",
        "bos_token_id": "families/deepseek_v2/test_fields.py::test_decoding_starts_and_ends_at_the_configs_tokens",
        "eos_token_id": "families/deepseek_v2/test_fields.py::test_decoding_starts_and_ends_at_the_configs_tokens",
        "pretraining_tp": "hf/test_training.py::test_slices_of_pretraining_change_only_the_rounding",
        "tie_word_embeddings": "hf/test_saving.py::test_a_tied_head_is_saved_once",
    },
    VisionEncoderConfig: {
        "use_checkpoint": "families/deepseek_vl2/test_siglip.py::test_recomputed_blocks_give_equal_gradients",
        "num_recomputing_layers": "families/deepseek_vl2/test_siglip.py::test_recomputed_blocks_give_equal_gradients",
        "deterministic": "families/deepseek_v2/test_fields.py::test_a_deterministic_tower_writes_its_attention_out",
        "weight_init": "families/deepseek_v2/test_fields.py::test_a_new_tower_is_drawn_as_weight_init_says",
    },
    MlpProjectorConfig: {},
    DeepseekVLV2Config: {
        "global_view_pos": "families/deepseek_vl2/test_model.py::test_the_global_view_may_come_last",
        "vision_batch_size": (
            "families/deepseek_vl2/test_model.py::test_the_tower_runs_once_over_the_batch_in_bounded_chunks"
        ),
    },
}

LABELS: dict[type, set[str]] = {
    DeepseekV2Config: set(),
    VisionEncoderConfig: {"model_name"},
    MlpProjectorConfig: set(),
    DeepseekVLV2Config: set(),
}


def build(config_class: type, values: dict[str, Any]) -> Any:
    """The fakes' model with ``values`` in the part that ``config_class`` configures."""
    if config_class is DeepseekV2Config:
        return tiny_v2(base=values)
    if config_class is VisionEncoderConfig:
        return tiny_vl2(vision=values, projector_config={})
    if config_class is MlpProjectorConfig:
        vision, language = {"width": values.get("input_dim", 16)}, {"hidden_size": values.get("n_embed", 32)}
        return tiny_vl2(projector_config=values, vision=vision, language=language)
    return tiny_vl2(**values)


def cases(table: dict[type, dict[str, tuple[Any, dict[str, Any]]]]) -> list[Any]:
    return [
        pytest.param(config_class, name, value, base, id=f"{config_class.__name__}.{name}")
        for config_class, entries in table.items()
        for name, (value, base) in entries.items()
    ]


@pytest.mark.parametrize("config_class", list(SHAPES), ids=lambda config_class: config_class.__name__)
def test_no_field_is_forgotten(config_class):
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    covered = [*SHAPES[config_class], *NUMBERS[config_class], *ELSEWHERE[config_class], *LABELS[config_class]]
    assert len(covered) == len(set(covered))
    assert set(covered) == own


def test_the_tests_elsewhere_exist():
    for entries in ELSEWHERE.values():
        for place in entries.values():
            file, name = place.split("::")
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.M), place


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("config_class", "name", "value", "base"), cases(SHAPES))
def test_it_changes_the_weights(config_class, name, value, base):
    def shapes(values):
        tower = config_class is VisionEncoderConfig  # alone, which may have a head
        made = VisionTower(VisionEncoderConfig(**TOWER | values)) if tower else build(config_class, values)
        return {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}

    assert shapes(base | {name: value}) != shapes(base)


@pytest.mark.parametrize(("config_class", "name", "value", "base"), cases(NUMBERS))
def test_it_changes_the_logits_of_the_same_weights(config_class, name, value, base):
    plain, other = build(config_class, base), build(config_class, base | {name: value})
    other.load_state_dict(plain.state_dict())
    inputs = {"input_ids": tokens(2, 24)} if config_class is DeepseekV2Config else vl2_inputs([[(1, 1)]])
    assert (plain(**inputs).logits - other(**inputs).logits).abs().max() > 1e-3


@pytest.mark.parametrize("base", [MOE, NOAUX, YARN, MHA], ids=["moe", "noaux", "yarn", "mha"])
def test_new_weights_spread_as_initializer_range_says(base):
    model = tiny_v2(base=base, initializer_range=0.05, pad_token_id=3)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.25), name
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
    assert model.get_input_embeddings().weight[3].abs().max() == 0  # padding means nothing


def test_decoding_starts_and_ends_at_the_configs_tokens():
    model = tiny_v2(bos_token_id=5)
    assert model.generate(max_new_tokens=1, do_sample=False, pad_token_id=0)[0, 0] == 5
    best = int(model(tokens(1, 4)).logits[0, -1].argmax())
    for ends in (best, [best, 1]):
        model = tiny_v2(eos_token_id=ends)
        assert model.generate(tokens(1, 4), max_new_tokens=5, do_sample=False, pad_token_id=0).shape == (1, 5)


def test_a_deterministic_tower_writes_its_attention_out(monkeypatch):
    plain, written = tiny_vl2().vision, tiny_vl2(vision={"deterministic": True}).vision
    tiles = torch.randn(1, 3, TILE, TILE)
    torch.testing.assert_close(written(tiles), plain(tiles), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("fused"))
    written(tiles)


def test_a_new_tower_is_drawn_as_weight_init_says():
    by_fields, by_jax = (tiny_vl2(vision={"weight_init": kind}).vision for kind in ("skip", "jax"))
    bound = (6 / (16 + 32)) ** 0.5  # Xavier, of the first feed-forward layer
    drawn = by_jax.blocks[0].mlp.fc1.weight
    assert bound * 0.9 < drawn.abs().max() <= bound
    assert by_fields.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.2, rel=0.2)  # initializer_range

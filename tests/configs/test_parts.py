"""The groups of settings inside a config: their types, rules and the way from dicts and objects and back."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs import MoEConfig, ParallelConfig
from modelwright.configs.engine import EngineSettings, QuantSettings, read_quantization
from modelwright.configs.parallel import RecomputeConfig, SwapConfig, stage_layers
from modelwright.configs.sampling import SamplingSettings
from modelwright.errors import ConfigError

EXPERTS = {"expert_num": 8, "num_experts_chosen": 2}
GROUPED = EXPERTS | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}


@pytest.mark.parametrize("kind", [MoEConfig, ParallelConfig, RecomputeConfig, SwapConfig])
def test_a_part_is_read_back_from_its_dict(kind):
    assert kind.read(kind().to_dict(), "it") == kind.read(None, "it") == kind()
    assert not kind().unknown_keys


def test_an_object_is_read_by_its_dict_or_its_attributes():
    degrees = ParallelConfig(data_parallel=2)
    assert ParallelConfig.read(SimpleNamespace(to_dict=degrees.to_dict), "it") == degrees
    assert ParallelConfig.read(SimpleNamespace(data_parallel=2, _hidden=1), "it") == degrees


def test_a_part_does_not_share_what_it_was_given():
    given_values = {"recompute": [1, 2]}
    part = RecomputeConfig.read(given_values, "it")
    given_values["recompute"].append(3)
    assert part.recompute == [1, 2]


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        (True, RecomputeConfig(recompute=True)),
        ([1, 0], RecomputeConfig(recompute=[1, 0])),
        ([[1, 0], [2, 1]], RecomputeConfig(recompute=[[1, 0], [2, 1]])),
        ({"select_recompute": {r"mlp\..*": True}}, RecomputeConfig(select_recompute={r"mlp\..*": True})),
        ({"select_recompute": ["mlp"]}, RecomputeConfig(select_recompute=["mlp"])),
        (None, RecomputeConfig()),
    ],
)
def test_recompute_is_a_bool_a_list_or_rules(recompute, expected):
    assert ParallelConfig(recompute=recompute).recompute == expected  # type: ignore[arg-type]


def test_devices_are_the_product_of_the_degrees():
    degrees = ParallelConfig(
        data_parallel=2,
        model_parallel=3,
        context_parallel=5,
        pipeline_stage=7,
        micro_batch_num=7,
        expert_parallel=10,
    )
    assert degrees.devices == 210
    assert degrees.ulysses_degree == 1
    assert ParallelConfig(context_parallel=4, context_parallel_algo="ulysses_cp").ulysses_degree == 4
    hybrid = ParallelConfig(context_parallel=4, context_parallel_algo="hybrid_cp", ulysses_degree_in_cp=2)
    assert hybrid.ulysses_degree == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data_parallel": 0}, "data_parallel must be at least 1, got 0"),
        ({"data_parallel": "2"}, r"data_parallel must be int, got '2' \(str\)"),
        ({"context_parallel_algo": "ring"}, 'one of "colossalai_cp", "ulysses_cp", "hybrid_cp"; got "ring"'),
        (
            {"context_parallel": 3, "context_parallel_algo": "hybrid_cp", "ulysses_degree_in_cp": 2},
            r"context_parallel \(3\) must be divisible by ulysses_degree_in_cp \(2\)",
        ),
        (
            {"context_parallel": 2, "ulysses_degree_in_cp": 2},
            r'ulysses_degree_in_cp \(2\) needs context_parallel_algo "hybrid_cp", got "colossalai_cp"',
        ),
        ({"pipeline_stage": 4, "micro_batch_num": 2}, r"micro_batch_num \(2\) must be at least pipeline_stage \(4\)"),
        ({"expert_parallel": 3, "data_parallel": 4}, r"\(4\) must be divisible by expert_parallel \(3\)"),
        ({"recompute": "yes"}, "recompute must be a dict, an object or None, got 'yes'"),
        ({"swap": {"layer_swap": [1]}}, r"swap: layer_swap \(\[1\]\) needs swap=True, got swap=False"),
        ({"swap": {"swap": True, "default_prefetch": 0}}, "swap: default_prefetch must be at least 1, got 0"),
    ],
)
def test_a_wrong_layout_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert_num": 2, "num_experts_chosen": 4}, r"num_experts_chosen \(4\) must not exceed expert_num \(2\)"),
        ({"routing_policy": "TopkRouterV3"}, 'one of "TopkRouterV1", "TopkRouterV2"; got "TopkRouterV3"'),
        ({"topk_method": "gready"}, 'one of "greedy", "group_limited_greedy", "noaux_tc"; got "gready"'),
        ({"router_dense_type": "int8"}, 'one of "float16", "bfloat16", "float32"; got "int8"'),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor must be above 0, got 0.0"),
        ({"aux_loss_factor": 1.0}, "aux_loss_factor must be between 0 and 1, got 1.0"),
        (
            {"aux_loss_types": ["expert"]},
            r"aux_loss_types \(\['expert'\]\) and aux_loss_factors \(None\) must be equally",
        ),
        ({"aux_loss_types": ["all"], "aux_loss_factors": [0.1]}, 'one of "expert", "device", "comm"; got "all"'),
        (GROUPED | {"n_group": None}, "needs n_group and topk_group, got n_group=None, topk_group=2"),
        (GROUPED | {"n_group": 3}, r"expert_num \(8\) must be divisible by n_group \(3\)"),
        (GROUPED | {"topk_group": 5}, r"topk_group \(5\) must not exceed n_group \(4\)"),
        (GROUPED | {"topk_group": 1, "num_experts_chosen": 3}, r"topk_group \(1\) x 2 experts = 2"),
        (GROUPED | {"topk_method": "noaux_tc", "n_group": 8}, r"expert_num \(8\) / n_group \(8\) must be at least 2"),
    ],
)
def test_a_wrong_routing_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        MoEConfig(**values)


def test_what_has_no_effect_is_a_field():
    for kind in (MoEConfig, ParallelConfig):
        assert kind().to_dict().keys() >= kind.IDLE.keys()


@pytest.mark.parametrize(
    ("layers", "stages", "virtual", "offset", "table"),
    [
        (8, 2, 1, 0, ((4, 4),)),
        (7, 2, 1, [1, 0], ((4, 3),)),
        (10, 2, 2, [[1, 0], [0, 1]], ((3, 2), (2, 3))),
        (8, 2, 2, [1, -1], ((3, 1), (3, 1))),
    ],
)
def test_layers_are_laid_out_over_stages(layers, stages, virtual, offset, table):
    assert stage_layers(layers, stages, virtual, offset) == table


@pytest.mark.parametrize(
    ("layers", "stages", "virtual", "offset", "message"),
    [
        (7, 2, 1, 0, r"offset \(0\) gives the stages \[3, 3\] layers, 6 together, and there are 7"),
        (10, 2, 2, [1, 1], r"gives the stages \[\[3, 3\], \[3, 3\]\] layers, 12 together, and there are 10"),
        (4, 2, 1, [2, -2], r"leaves a stage without layers: \[4, 0\] of 4 layers"),
        (2, 2, 2, 0, r"pipeline_stage \(2\) x pp_interleave_num \(2\) must not exceed the layers \(2\)"),
        (2, 1, 10**12, 0, r"pipeline_stage \(1\) x pp_interleave_num \(10{12}\) must not exceed the layers \(2\)"),
        (5, 2, 2, [[1, 0], [0, -1]], r"leaves a stage without layers: \[\[2, 1\], \[1, 0\]\] of 5 layers"),
        (4, 2, 1, [0], r"list of pipeline_stage \(2\) ints, or pp_interleave_num \(1\) such lists; got \[0\]"),
        (4, 2, 1, [[0, 0], [0, 0]], r"pp_interleave_num \(1\) such lists"),
        (4, 2, 2, [[0, 0], 1], r"pp_interleave_num \(2\) such lists"),
        (4, 2, 1, ["0", "0"], r"got \['0', '0'\]"),
        (4, 2, 1, "even", "such lists; got even"),
    ],
)
def test_stages_that_do_not_add_up_are_refused(layers, stages, virtual, offset, message):
    with pytest.raises(ConfigError, match=message):
        stage_layers(layers, stages, virtual, offset)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 20))
def test_an_even_split_holds_every_layer(stages, virtual, share):
    table = stage_layers(share * stages * virtual, stages, virtual, 0)
    assert table == ((share,) * stages,) * virtual


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (None, None),
        ({}, None),
        ({"quant_method": "int8_weight_only"}, QuantSettings(weights="int8")),
        ({"quant_method": "int4_weight_only"}, QuantSettings(weights="int4")),
        ({"quant_method": "int8_dynamic"}, QuantSettings(weights="int8", activations="int8")),
        ({"quant_method": "int8_kv"}, QuantSettings(kv_cache="int8")),
        (
            {"quant_method": "rtn", "weight_dtype": "int8", "activation_dtype": None, "kvcache_dtype": "int8"},
            QuantSettings(weights="int8", kv_cache="int8"),
        ),
        (
            {"quant_method": "int4_weight_only", "group_size": 64, "lm_head": True, "symmetric": True},
            QuantSettings(weights="int4", group=64, symmetric=True, head=True),
        ),
        (
            {"quant_method": "rtn", "weight_dtype": "int4", "kvcache_dtype": "int8", "group_size": 128},
            QuantSettings(weights="int4", kv_cache="int8", group=128),
        ),
    ],
)
def test_a_quantization_is_read(values, settings):
    assert read_quantization(values) == settings
    assert settings is None or read_quantization(settings.to_config()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "gptq"}, "int8_weight_only, int4_weight_only, int8_dynamic, int8_kv, rtn; got 'gptq'"),
        ({"weight_dtype": "int8"}, "quant_method must be one of .*; got None"),
        ({"quant_method": "int8_kv", "group": 2}, r'"int8_kv" takes no more keys, got \[\'group\'\]'),
        ({"quant_method": "int8_weight_only", "group_size": 32}, r"takes no more keys, got \['group_size'\]"),
        ({"quant_method": "int4_weight_only", "group_size": 48}, "group_size must be one of 32, 64, 128; got 48"),
        ({"quant_method": "int4_weight_only", "group_size": 32.0}, r"group_size must be one of 32, 64, 128; got 32\.0"),
        ({"quant_method": "int4_weight_only", "lm_head": 1}, "lm_head must be true or false; got 1"),
        ({"quant_method": "int4_weight_only", "symmetric": "no"}, "symmetric must be true or false; got 'no'"),
        ({"quant_method": "int8_weight_only", "symmetric": True}, r"takes no more keys, got \['symmetric'\]"),
        ({"quant_method": "rtn", "weight_dtype": "int8", "group_size": 32}, 'got "group_size"'),
        ({"quant_method": "rtn"}, "needs one of weight_dtype, activation_dtype, kvcache_dtype; got none"),
        ({"quant_method": "rtn", "weight_dtype": "fp8"}, 'weight_dtype must be one of "int8", "int4"; got "fp8"'),
        ({"quant_method": "rtn", "bits": 8}, 'takes weight_dtype, activation_dtype, kvcache_dtype; got "bits"'),
        ({"quant_method": "rtn", "activation_dtype": "int8"}, 'needs weight_dtype "int8", got None'),
    ],
)
def test_an_unknown_quantization_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        read_quantization(values)


def test_a_pool_has_pages():
    with pytest.raises(ConfigError, match="num_blocks must be at least 1, got 0"):
        EngineSettings(num_blocks=0)


def test_sampling_settings_are_checked():
    assert SamplingSettings(top_k=0, top_p=0.0).top_k == 0
    with pytest.raises(ConfigError, match="max_decode_length must be at least 1, got 0"):
        SamplingSettings(max_decode_length=0)

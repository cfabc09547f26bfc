"""The table of MindFormers' names: against the model's own names and shapes, and the packings it recognises."""

import pytest
import torch

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.mindformers.names import (
    Packing,
    left_out,
    mindformers_tensors,
    packing_of,
    recognise,
    usual_name,
)
from modelwright.families.llama.model import LlamaForCausalLM

TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "intermediate_size": 48}
TINY |= {"dialect": "mindformers"}
EXPERTS = {"expert_num": 4, "num_experts_chosen": 2}
SHARED = EXPERTS | {"shared_expert_num": 2, "use_shared_expert_gating": True, "balance_via_topk_bias": True}
VARIANTS = {
    "dense": {},
    "fused": {"qkv_concat": True},
    "biases": {"qkv_has_bias": True, "attn_proj_has_bias": True, "qkv_concat": True},
    "tied": {"tie_word_embeddings": True},
    "experts": {"moe_config": EXPERTS},
    "fused experts": {"moe_config": EXPERTS, "qkv_concat": True},
    "shared experts": {"moe_config": SHARED},
    "inference experts": {"moe_config": SHARED, "use_past": True},
    "grouped experts": {"moe_config": SHARED | {"use_gmm": True}},
}


def config_of(name: str, **more) -> LlamaConfig:
    return LlamaConfig(**TINY | VARIANTS[name] | more)


def table(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in mindformers_tensors(config, packing_of(config))}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parts_are_the_models_own_tensors(name):
    config = config_of(name)
    parts: dict[str, tuple[int, ...]] = {}
    for tensor in mindformers_tensors(config, packing_of(config)):
        assert not parts.keys() & tensor.parts.keys()
        parts |= tensor.parts
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tied = model.tied_names()
    assert parts == {name: place.shape for name, place in model.places().items() if name not in tied}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_layout_makes_the_shape_it_promises(name):
    config = config_of(name)
    for tensor in mindformers_tensors(config, packing_of(config)):
        made = tensor.layout.join([torch.zeros(shape) for shape in tensor.parts.values()])
        assert made.shape == tensor.shape, tensor.name


def test_the_names_and_shapes_of_a_dense_layer():
    found = table(config_of("dense"))
    assert found["model.tok_embeddings.embedding_weight"] == (64, 32)
    assert found["model.layers.1.attention.wk.weight"] == (16, 32)
    assert found["model.layers.0.feed_forward.w1.weight"] == found["model.layers.0.feed_forward.w3.weight"] == (48, 32)
    assert found["model.layers.0.feed_forward.w2.weight"] == (32, 48)
    assert found["model.norm_out.weight"] == (32,)
    assert len(found) == 3 + 2 * 9


def test_fused_layers_have_two_matrices_less_each_way():
    found = table(config_of("biases"))
    assert found["model.layers.0.attention.w_qkv.weight"] == (64, 32)
    assert found["model.layers.0.attention.w_qkv.bias"] == (64,)
    assert found["model.layers.0.attention.wo.bias"] == (32,)
    assert found["model.layers.0.feed_forward.w_gate_hidden.weight"] == (96, 32)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "experts",
            {
                "router.dense.weight": (4, 32),
                "ffn.w1.weight": (4, 48, 32),
                "ffn.w2.weight": (4, 32, 48),
                "ffn.w3.weight": (4, 48, 32),
            },
        ),
        (
            "inference experts",
            {
                "routed_experts.router.dense.weight": (4, 32),
                "routed_experts.router.router.topk_bias": (4,),
                "routed_experts.ffn.w1.weight": (4, 32, 48),
                "routed_experts.ffn.w2.weight": (4, 48, 32),
                "routed_experts.ffn.w3.weight": (4, 32, 48),
                "shared_experts.w1.weight": (96, 32),
                "shared_experts.w2.weight": (32, 96),
                "shared_experts.w3.weight": (96, 32),
                "shared_experts_gate.weight": (1, 32),
            },
        ),
        (
            "grouped experts",
            {
                "routed_experts.router_dense.weight": (4, 32),
                "routed_experts.topk_bias": (4,),
                "routed_experts.ffn.w1": (4, 32, 96),
                "routed_experts.ffn.w2": (4, 48, 32),
                "shared_experts.w1.weight": (96, 32),
                "shared_experts.w2.weight": (32, 96),
                "shared_experts.w3.weight": (96, 32),
                "shared_experts_gate.weight": (1, 32),
            },
        ),
    ],
)
def test_the_names_and_shapes_of_experts(name, shapes):
    prefix = "model.layers.1.feed_forward."
    found = {k.removeprefix(prefix): v for k, v in table(config_of(name)).items() if k.startswith(prefix)}
    assert found == shapes


@pytest.mark.parametrize("name", VARIANTS)
def test_every_packing_is_recognised_whatever_the_config_says(name):
    config = config_of(name)
    other = config_of(name, qkv_concat=not config.qkv_concat, use_past=not config.use_past)
    assert set(table(config)) == {tensor.name for tensor in mindformers_tensors(other, recognise(other, table(config)))}
    assert recognise(config, table(config)) == packing_of(config) or config.has_experts
    if config.has_experts:
        assert recognise(other, table(config)).experts == packing_of(config).experts


def test_square_experts_are_as_the_config_says():
    square = {"moe_config": EXPERTS, "intermediate_size": 32}
    training, inference = LlamaConfig(**TINY | square), LlamaConfig(**TINY | square | {"use_past": True})
    assert recognise(training, table(training)).experts == "batched"
    assert recognise(inference, table(inference)).experts == "transposed"


def test_interleaved_layers_keep_query_key_and_value_in_one_block():
    config = config_of("fused", fine_grain_interleave=2, parallel_config={"model_parallel": 2})
    assert packing_of(config) == Packing("consecutive", gate_up=False)
    found = table(config)
    assert found["model.layers.0.attention.w.weight"] == (64, 32)
    assert recognise(config_of("dense"), found) == packing_of(config)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.attention.infer_attention.paged_attention_mgr.key_cache", "a cache of the run"),
        ("model.layers.0.attention.value_cache_grad", "a cache of the run"),
        ("seq_chunk", "a cache of the run"),
        ("model.mask_cache", "a cache of the run"),
        ("model.layers.0.feed_forward.router.router.expert_load", "a counter of the run"),
        ("adam_m.model.norm_out.weight", "state of the optimizer"),
        ("global_step", "state of the training run"),
    ],
)
def test_what_is_no_weight_is_left_out_with_a_reason(name, reason):
    assert left_out(name) == reason


@pytest.mark.parametrize("name", VARIANTS)
def test_no_weight_is_left_out(name):
    assert not any(left_out(tensor) for tensor in table(config_of(name)))


def test_the_routers_bias_has_a_second_name():
    name = "model.layers.0.feed_forward.routed_experts.router."
    assert usual_name(f"{name}e_score_correction_bias") == f"{name}router.topk_bias"

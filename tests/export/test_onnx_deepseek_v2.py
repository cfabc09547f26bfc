"""DeepSeek-V2's graphs against the model and the official code's numbers: latent cache, routers, rotations."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.errors import ConfigError
from modelwright.export import DeepseekV2OnnxConfig, OnnxDecoder, export_onnx
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from tests.export.graphs import largest_delta, lengths
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, YARN, golden, tiny_v2, tokens, write_checkpoint

pytestmark = pytest.mark.slow  # its export alone takes more than a quick test may

GOLDEN = [
    "v2_dense",
    "v2_lite_group",
    "v2_mha_gqa",
    "v2_mla_yarn",
    "v2_noaux_sigmoid",
    "v2_rope_dynamic_long",
    "v2_rope_linear",
]
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}
SWITCHES = {
    "dense, every bias": DENSE | {"attention_bias": True, "pretraining_tp": 2, "tie_word_embeddings": True},
    "no query latent": MOE | {"q_lora_rank": None, "scoring_func": "sigmoid", "routed_scaling_factor": 2.5},
    "groups": GROUPED | {"norm_topk_prob": True, "gated_mlp": False, "hidden_act": "relu2"},
    "all experts": MOE | {"num_experts_per_tok": 8, "n_shared_experts": None, "first_k_dense_replace": 0},
    "one expert a token": MOE | {"num_experts_per_tok": 1, "moe_layer_freq": 2},
    "heads": MHA | {"qkv_concat": True, "attention_bias": True},
    "heads, dynamic": MHA | DYNAMIC,
    "linear": MOE | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic": MOE | DYNAMIC,
    "yarn": YARN,
}


@pytest.fixture(scope="module")
def made(exported):
    """A dense layer and one with a biased router over groups of experts."""
    return exported(tiny_v2(base=NOAUX, v_head_dim=6))


@settings(max_examples=25)
@given(shape=lengths, padded=st.booleans())
def test_any_lengths_and_any_routing_with_and_without_left_padding(made, shape, padded):
    assert largest_delta(made.model, made.open(), padded=padded, **shape) < 1e-4


def test_the_routing_is_not_the_traced_one(made):
    """Other tokens go to other experts, all of them together, and the graph follows."""
    chosen = []
    gate = made.model.model.layers[1].mlp.gate
    hook = gate.register_forward_hook(lambda _module, _inputs, routing: chosen.append(routing.chosen))
    try:
        for seed in range(8):
            assert largest_delta(made.model, made.open(), 1, 4, 0, seed) < 1e-4
    finally:
        hook.remove()
    assert len({frozenset(experts.flatten().tolist()) for experts in chosen}) > 4
    assert torch.cat(chosen).unique().tolist() == list(range(8))


def test_the_cache_of_the_graph_is_the_latent_and_the_rotated_key(made):
    graph = onnx.load(made.folder / "decoder.onnx").graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    for layer in range(2):
        assert shapes[f"past.{layer}.key"] == ["batch", 1, "past", 8]
        assert shapes[f"past.{layer}.value"] == ["batch", 1, "past", 16]
        assert shapes[f"present.{layer}.value"] == ["batch", 1, "past + sequence", 16]


def test_the_report(made):
    found = made.report.verification
    assert made.report.family == "deepseek_v2"
    assert found.largest < 1e-4
    assert (found.greedy_tokens, found.ties) == (32, 0)


def test_greedy_tokens_of_a_padded_batch(made):
    ids, mask = tokens(3, 6, seed=1), torch.ones(3, 6, dtype=torch.long)
    mask[0, :4] = mask[2, :1] = 0
    decoder = OnnxDecoder(made.folder, threads=1)
    steps = []
    found = decoder.generate(
        ids.numpy(), 32, attention_mask=mask.numpy(), eos_token_id=(), on_token=lambda new: steps.append(new)
    )
    free = _greedy(made.model, ids, mask, 32)
    assert np.array_equal(found, free)
    assert np.array_equal(np.stack(steps, axis=1), free[:, 6:])


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_greedy_tokens_of_the_official_code(exported, tmp_path, name):
    config, weights, inputs, outputs = golden(name)
    folder = write_checkpoint(tmp_path, config | {"model_type": "deepseek_v2"}, weights)
    made = exported(DeepseekV2ForCausalLM.from_pretrained(folder), draws=4)
    decoder = OnnxDecoder(made.folder, threads=1)
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].long().numpy()
    logits, _ = decoder.decoder.run({"input_ids": ids}, mask, decoder.decoder.no_past(len(ids)), keep=0)
    real = mask.astype(bool)
    np.testing.assert_allclose(logits[real], outputs["logits"].numpy()[real], atol=1e-4, rtol=0)
    new = outputs["greedy"].shape[1]
    found = decoder.generate(ids, new, attention_mask=mask, eos_token_id=())
    free = _greedy(made.model, inputs["input_ids"], inputs["attention_mask"], new)
    assert np.array_equal(found, free)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch(exported, name):
    made = exported(tiny_v2(base=SWITCHES[name]), draws=6)
    for shape in ((1, 1, 0), (3, 5, 0), (2, 1, 9), (2, 4, 20)):
        assert largest_delta(made.model, made.open(), *shape, seed=0, padded=True) < 1e-4


def test_half_precision(exported):
    made = exported(tiny_v2(base=NOAUX), dtype="float16")
    assert made.report.dtype == "float16"
    half = tiny_v2(base=NOAUX).half()
    half.load_state_dict(made.model.state_dict())
    assert largest_delta(half, made.open(), 2, 3, 4, seed=0) < 5e-2


@pytest.mark.parametrize(
    ("base", "key", "value", "limit"),
    [
        (MOE, (1, 8), (1, 16), 128),
        (MHA, (2, 8), (2, 8), 128),
        (MOE | DYNAMIC, (1, 8), (1, 16), None),
    ],
)
def test_what_the_config_says_of_the_cache_and_the_positions(base, key, value, limit):
    config = DeepseekV2OnnxConfig(tiny_v2(base=base).config)
    assert [(part.heads, part.width) for part in config.cache.parts] == [key, value]
    assert config.cache.layers == 2 and config.max_positions == limit
    assert config.inputs == {"input_ids": {0: "batch", 1: "sequence"}}


def _greedy(model, ids: torch.Tensor, mask: torch.Tensor, new: int) -> np.ndarray:
    """The best tokens, the end of sentence like any other."""
    eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None
        ).numpy()
    finally:
        model.generation_config.eos_token_id = eos


def test_layers_that_are_more_than_a_floating_weight_are_refused_by_name(tmp_path):
    model = tiny_v2()
    attention = model.model.layers[0].self_attn
    attention.kv_b_proj = type("Adapted", (torch.nn.Linear,), {})(*attention.kv_b_proj.weight.shape[::-1], bias=False)
    rule = "model.layers.0.self_attn.kv_b_proj must be a plain Linear to be exported, and it is a Adapted or has"
    with pytest.raises(ConfigError, match=rule):
        export_onnx(model, tmp_path / "adapted")
    with pytest.raises(ConfigError, match=r"model\.layers\.0\..* is quantized: export the model whose weights are"):
        export_onnx(quantize_model(tiny_v2(), "int8"), tmp_path / "quantized")
    assert list(tmp_path.iterdir()) == []

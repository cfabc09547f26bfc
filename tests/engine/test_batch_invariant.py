"""With ``batch_invariant`` scores have the same bits alone and in any company, in bf16 and with integers."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.ops import routing
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.experts import experts
from modelwright.ops.invariant import invariant_rows, rows_are_invariant
from modelwright.ops.latent import latent_to_values, query_to_latent
from modelwright.ops.linear import linear
from modelwright.ops.norm import rms_norm
from modelwright.ops.stored import stored_experts, stored_linear
from modelwright.ops.weight_only import quantise_int4, quantise_int8
from tests.engine.engines import check_idle, record
from tests.fakes import VL2, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

V2 = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "q_lora_rank": None, "v_head_dim": 16}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1, "max_position_embeddings": 128}
MAKERS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE | WIDE),
    "deepseek_v2": lambda: tiny_v2(**V2),
    "sliced": lambda: tiny_llama(base=HUGGING_FACE | WIDE, pretraining_tp=2),
    "imagegpt": lambda: tiny_imagegpt(vocab_size=65, n_positions=128, activation_function="gelu_new"),
    "deepseek_vl2": lambda: tiny_vl2(language=V2, projector_config=VL2["projector_config"] | {"n_embed": 64}),
}
KINDS = ["bf16", "int8", "int8-dynamic", "int4"]
CASES = [(name, kind) for name in MAKERS for kind in KINDS if name not in ("imagegpt", "sliced") or kind == "bf16"]
LIMITS: list[dict[str, Any]] = [
    {},
    {"token_budget": 7, "max_batch": 3},
    {"num_pages": 30, "max_batch": 5},
    {"num_pages": 30, "host_pages": 12, "token_budget": 24, "max_batch": 9},
    {"reuse_prefixes": False, "token_budget": 13, "max_batch": 6},
    {"chunk_prefill": False},
    {"backend": "eager", "token_budget": 33, "max_batch": 32},
]


@cache
def model_of(name: str, kind: str) -> Any:
    model = MAKERS[name]().bfloat16()
    return model if kind == "bf16" else quantize_model(model, kind)


def engine_of(name: str, kind: str, **limits: Any) -> Engine:
    how = {"page_size": 4, "num_pages": 200, "batch_invariant": True}
    return Engine(model_of(name, kind), EngineConfig(**how | limits))


BEGINNING = tokens(11, seed=3).tolist()
PROMPTS = [
    [*BEGINNING[:shared], *tokens(length, seed=length).tolist()]
    for shared, length in ((0, 1), (11, 6), (9, 14), (11, 2), (0, 40), (8, 33), (0, 17))
]


@cache
def prompt_of(name: str, number: int) -> Any:
    if name == "deepseek_vl2" and number % 3 == 1:
        return {part: value for part, value in vl2_inputs([[(1, 1)]], seed=number % 2).items() if part != "labels"}
    return PROMPTS[number]


def asking(number: int) -> SamplingParams:
    how = {"temperature": 1.1, "top_p": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
    return SamplingParams(max_tokens=9, ignore_eos=True, **how)


@cache
def alone(name: str, kind: str, number: int) -> tuple[tuple[int, ...], torch.Tensor]:
    engine = engine_of(name, kind, max_batch=1)
    recorded = record(engine)
    (result,) = engine.generate([prompt_of(name, number)], asking(number))
    return result.completions[0].tokens, torch.stack([recorded.drawn[result.request][i] for i in range(9)])


@pytest.mark.one_in(7)
@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, len(PROMPTS) - 1), min_size=2, max_size=7),
    st.sampled_from(LIMITS),
    st.integers(0, 3),
)
def test_scores_have_the_same_bits_alone_and_in_company(name, kind, numbers, limits, between):
    engine = engine_of(name, kind, **limits)
    recorded = record(engine)
    found: dict[str, list[int]] = {}

    def step() -> None:
        for update in engine.step():
            found[update.request] += update.tokens

    asked = {}
    for number in numbers:
        id_ = engine.add_request(prompt_of(name, number), asking(number))
        asked[id_], found[id_] = number, []
        for _ in range(between):
            step()
    while engine.has_work:
        step()
    for id_, number in asked.items():
        drawn, logits = alone(name, kind, number)
        assert tuple(found[id_]) == drawn
        assert torch.equal(torch.stack([recorded.drawn[id_][i] for i in range(9)]), logits)
    check_idle(engine)


def test_otherwise_they_have_not():
    """So the test above would see it."""
    names, differ = ("llama", "bf16"), 0
    for number in range(len(PROMPTS)):
        whole = []
        for limits in ({"max_batch": 1}, {"token_budget": 8, "max_batch": 8}):
            engine = engine_of(*names, batch_invariant=False, **limits)
            recorded = record(engine)
            (result,) = engine.generate([PROMPTS[number]], asking(0))
            whole.append(recorded.drawn[result.request][0])
        differ += not torch.equal(*whole)
    assert differ


def test_an_adapter_on_what_expands_latents_keeps_it():
    """Then the past is expanded at every step, instead of queries absorbed."""
    model = tiny_v2(**V2).bfloat16()
    for layer in model.model.layers:
        layer.self_attn.kv_b_proj.register_forward_hook(lambda module, given, out: out * 2)
    each = []
    for limits in ({"max_batch": 1}, {"token_budget": 7}, {"token_budget": 64}):
        how = {"page_size": 4, "num_pages": 200, "batch_invariant": True, "max_batch": 4}
        engine = Engine(model, EngineConfig(**how | limits))
        recorded = record(engine)
        results = engine.generate(PROMPTS[1:4], asking(0))
        each.append([torch.stack([*recorded.drawn[result.request].values()]) for result in results])
    for others in each[1:]:
        assert all(map(torch.equal, each[0], others))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_each_row_of_an_operation_is_what_it_is_alone(dtype, compiled, monkeypatch):
    if not compiled:
        for name in ("serves_linear", "serves_experts", "serves_rows", "serves_latent", "serves_decode"):
            monkeypatch.setattr(kernels, name, lambda *_: False)
    torch.manual_seed(0)
    x, weight = torch.randn(70, 96).to(dtype), torch.randn(160, 96).to(dtype)
    stacks = torch.randn(4, 64, 96).to(dtype), torch.randn(4, 96, 32).to(dtype)
    chosen, shares = torch.rand(70, 4).argsort(-1)[:, :2], torch.rand(70, 2)
    int8, int4 = quantise_int8(weight[:, :64].contiguous()), quantise_int4(weight[:, :64].contiguous())
    many8 = [quantise_int8(stack) for stack in stacks]
    silu = torch.nn.functional.silu
    operations = {
        "linear": lambda x, *_: linear(x, weight),
        "int8": lambda x, *_: stored_linear(x[:, :64], int8),
        "int4": lambda x, *_: stored_linear(x[:, :64], int4),
        "dynamic": lambda x, *_: stored_linear(x[:, :64], int8, None, True),
        "experts": lambda x, c, s: experts(x, c, s, *stacks, silu),
        "int8 experts": lambda x, c, s: stored_experts(x, c, s, *many8, silu),
        "dynamic experts": lambda x, c, s: stored_experts(x, c, s, *many8, silu, dynamic=True),
        "routing": lambda x, *_: routing.router_scores(x, weight[:4].float(), "softmax", torch.float32)[1],
        "norm": lambda x, *_: rms_norm(x, weight[0], 1e-6),
        "latents": lambda x, *_: query_to_latent(x[None, None, :, :32], weight[:64])[0, 0],
        "values": lambda x, *_: latent_to_values(x[None, None], weight[:64], 32)[0, 0],
    }
    with torch.inference_mode(), invariant_rows():
        for name, operation in operations.items():
            whole = operation(x, chosen, shares)
            for first, last in ((0, 1), (3, 4), (5, 13), (60, 70), (1, 66)):
                part = operation(x[first:last].clone(), chosen[first:last], shares[first:last])
                assert torch.equal(part, whole[first:last]), (name, first, last)
    assert not rows_are_invariant()

"""Experts in onnxruntime against the loop that documents them: any routing, number of tokens, activation and type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN

from modelwright.configs.activations import ACTIVATION_NAMES
from modelwright.export.experts import GraphDispatcher, opaque_grouped_linear, traceable_experts
from modelwright.export.graphs import Graph
from modelwright.export.session import open_session
from modelwright.export.trace import write_graph
from modelwright.layers import Experts, MoE
from modelwright.ops.experts import looped_experts
from tests.fakes import tiny_v2

DIM, WIDTH, EXPERTS = 8, 12, 6


class Routed(nn.Module):
    """Experts by name over one routing, which is an input."""

    def __init__(self, experts: Mapping[str, Experts]):
        super().__init__()
        self.experts = nn.ModuleDict(experts)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        routing = inputs["weights"], inputs["chosen"]
        return {
            f"out.{name}": part(inputs["x"], *routing, opaque_grouped_linear) for name, part in self.experts.items()
        }


def make_experts(
    act: str = "silu", gated: bool = True, dtype: torch.dtype = torch.float32, count: int = EXPERTS
) -> Experts:
    torch.manual_seed(0)
    experts = Experts(count, DIM, WIDTH, ACT2FN[act], gated).eval()
    for stack in (experts.gate_up_proj, experts.down_proj):
        nn.init.normal_(stack, std=0.5)
    return experts.to(dtype)


def draw(tokens: int, top_k: int, seed: int, dtype: torch.dtype, count: int = EXPERTS) -> dict[str, Tensor]:
    """Tokens, and for each ``top_k`` experts that differ."""
    numbers = torch.Generator().manual_seed(seed)
    chosen = torch.rand(tokens, count, generator=numbers).argsort(dim=-1)[:, :top_k]
    weights = torch.rand(tokens, top_k, generator=numbers)
    return {"x": torch.randn(tokens, DIM, generator=numbers).to(dtype), "weights": weights, "chosen": chosen}


def open_experts(folder: Path, experts: Mapping[str, Experts], top_k: int = 2) -> Any:
    """A session over a graph that was traced with one routing of five tokens."""
    first = next(iter(experts.values()))
    count = len(first.down_proj)
    example = draw(5, top_k, 0, first.down_proj.dtype, count)
    inputs = {name: {0: "tokens"} for name in example}
    outputs = {f"out.{name}": {0: "tokens"} for name in experts}
    graph = Graph("experts", Routed(experts), inputs, outputs, example)
    return open_session(write_graph(graph, folder), threads=1)


def largest_delta(session: Any, experts: Mapping[str, Experts], inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """By name, the largest difference from the documented loop."""
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    deltas = {}
    for name, array in zip(names, found, strict=True):
        name = name.removeprefix("out.")
        part = experts[name]
        routed = inputs["x"], inputs["chosen"], inputs["weights"]
        with torch.no_grad():
            expected = looped_experts(*routed, part.gate_up_proj, part.down_proj, part.act, part.gated)
        assert array.dtype == expected.numpy().dtype and array.shape == tuple(expected.shape)
        deltas[name] = float(np.abs(array.astype(np.float64) - expected.double().numpy()).max())
    return deltas


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Experts with and without a gate, and some of which the last two hold no numbers, in one graph."""
    experts = {"gated": make_experts(), "plain": make_experts("gelu_new", gated=False), "holed": make_experts()}
    with torch.no_grad():
        experts["holed"].gate_up_proj[-2:] = torch.nan
        experts["holed"].down_proj[-2:] = torch.nan
    folder = tmp_path_factory.mktemp("experts")
    return folder, experts, open_experts(folder, experts)


@pytest.mark.slow
@settings(max_examples=30)
@given(tokens=st.integers(1, 40), seed=st.integers(0, 999))
def test_any_number_of_tokens_and_any_routing(made, tokens, seed):
    _, experts, session = made
    deltas = largest_delta(session, experts, draw(tokens, 2, seed, torch.float32))
    assert max(deltas["gated"], deltas["plain"]) < 1e-4, deltas


def test_all_tokens_at_the_same_experts_and_each_at_others(made):
    _, experts, session = made
    inputs = draw(EXPERTS, 2, 0, torch.float32)
    everyone = torch.arange(EXPERTS)
    for first, second in ((3, 0), (everyone, everyone.roll(1)), (everyone.flip(0), everyone // 3 * 3)):
        chosen = torch.stack([torch.as_tensor(part).expand(EXPERTS) for part in (first, second)], dim=1)
        deltas = largest_delta(session, experts, inputs | {"chosen": chosen})
        assert max(deltas["gated"], deltas["plain"]) < 1e-4


def test_only_the_chosen_experts_are_computed(made):
    """Whoever computed an expert without numbers and weighed its result by zero would see it."""
    feeds = {name: tensor.numpy() for name, tensor in draw(9, 2, 1, torch.float32, count=EXPERTS - 2).items()}
    [found] = made[2].run(["out.holed"], feeds)
    assert np.isfinite(found).all()
    feeds["chosen"][3, 1] = EXPERTS - 1
    [found] = made[2].run(["out.holed"], feeds)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()


def test_the_graph_holds_one_product_for_each_expert_and_every_weight_once(made):
    folder, experts, _ = made
    graph = onnx.load(folder / "experts.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMul") == 2 * EXPERTS * len(experts) and not {"Loop", "Gemm", "Einsum"} & set(kinds)
    matrices = [list(tensor.dims) for tensor in graph.initializer if len(tensor.dims) > 1]
    gated, plain, back = [DIM, 2 * WIDTH], [DIM, WIDTH], [WIDTH, DIM]
    assert sorted(matrices) == sorted(EXPERTS * [gated, gated, plain, back, back, back])


@pytest.mark.slow
def test_every_activation_that_a_config_may_name(tmp_path):
    experts = {name: make_experts(name, gated=number % 2 == 0) for number, name in enumerate(ACTIVATION_NAMES)}
    session = open_experts(tmp_path, experts)
    for seed, tokens in enumerate((1, 2, 30)):
        deltas = largest_delta(session, experts, draw(tokens, 2, seed, torch.float32))
        assert list(deltas) == list(ACTIVATION_NAMES)
        assert max(deltas.values()) < 1e-4, deltas


@pytest.mark.slow
def test_every_expert_for_every_token_in_half_precision(tmp_path):
    experts = {"gated": make_experts(dtype=torch.float16), "plain": make_experts("gelu", False, torch.float16)}
    session = open_experts(tmp_path, experts, top_k=EXPERTS)
    for seed, tokens in enumerate((1, 2, 30)):
        inputs = draw(tokens, EXPERTS, seed, torch.float16)
        weights = inputs["weights"] / inputs["weights"].sum(dim=-1, keepdim=True)
        deltas = largest_delta(session, experts, inputs | {"weights": weights})
        assert max(deltas.values()) < 2e-2, deltas


@pytest.mark.slow
def test_a_single_expert(tmp_path):
    experts = {"only": make_experts(count=1)}
    session = open_experts(tmp_path, experts, top_k=1)
    for tokens in (1, 2, 9):
        assert largest_delta(session, experts, draw(tokens, 1, tokens, torch.float32, count=1))["only"] < 1e-4


def test_a_model_keeps_its_own_dispatchers():
    model = tiny_v2()
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    before = [layer.dispatch for layer in layers]
    with pytest.raises(RuntimeError, match="halfway"), traceable_experts(model):
        assert layers and all(isinstance(layer.dispatch, GraphDispatcher) for layer in layers)
        raise RuntimeError("halfway")
    assert [layer.dispatch for layer in layers] == before


def test_the_operator_says_what_the_documented_product_says():
    x, stack = torch.randn(7, DIM), torch.randn(3, WIDTH, DIM)
    counts = torch.tensor([4, 0, 3])
    expected = torch.cat((x[:4] @ stack[0].T, x[4:] @ stack[2].T))
    torch.testing.assert_close(opaque_grouped_linear(x, stack, counts), expected)

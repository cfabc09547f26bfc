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
from modelwright.export.experts import GraphDispatcher, expert_translations, opaque_grouped_linear, traceable_experts
from modelwright.export.graphs import Graph
from modelwright.export.session import open_session
from modelwright.export.trace import write_graph
from modelwright.layers import Experts, MoE, Router
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
        return {name: part(inputs["x"], *routing, opaque_grouped_linear) for name, part in self.experts.items()}


def make_experts(act: str = "silu", gated: bool = True, dtype: torch.dtype = torch.float32, count: int = EXPERTS) -> Any:
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


def open_experts(folder: Path, experts: Mapping[str, Experts], count: int = EXPERTS) -> Any:
    """A session over a graph that was traced with one routing of five tokens to two experts each."""
    module = Routed(experts)
    stack = next(iter(experts.values())).down_proj
    example = draw(5, min(2, count), 0, stack.dtype, count)
    axes = {"x": {0: "tokens"}, "weights": {0: "tokens", 1: "top_k"}, "chosen": {0: "tokens", 1: "top_k"}}
    if count == 1:
        axes = {name: {0: "tokens"} for name in axes}
    translations = expert_translations(MoE(Router(DIM, count, 1), next(iter(experts.values())), None))
    outputs = {name: {0: "tokens"} for name in experts}
    return open_session(write_graph(Graph("experts", module, axes, outputs, example, translations), folder), threads=1)


def largest_delta(session: Any, experts: Mapping[str, Experts], inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """By name, the largest difference from the documented loop."""
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    deltas = {}
    for name, array in zip(names, found, strict=True):
        part = experts[name]
        routed = inputs["x"], inputs["chosen"], inputs["weights"]
        with torch.no_grad():
            expected = looped_experts(*routed, part.gate_up_proj, part.down_proj, part.act, part.gated)
        assert array.dtype == expected.numpy().dtype and array.shape == tuple(expected.shape)
        deltas[name] = float(np.abs(array.astype(np.float64) - expected.double().numpy()).max())
    return deltas


@pytest.fixture(scope="module")
def every_activation(tmp_path_factory):
    """One graph with experts of each activation a config may name, gated and not in turn."""
    experts = {name: make_experts(name, gated=number % 2 == 0) for number, name in enumerate(ACTIVATION_NAMES)}
    return experts, open_experts(tmp_path_factory.mktemp("activations"), experts)


@settings(max_examples=25)
@given(tokens=st.integers(1, 40), top_k=st.integers(1, EXPERTS), seed=st.integers(0, 999))
def test_every_activation_over_any_routing(every_activation, tokens, top_k, seed):
    experts, session = every_activation
    deltas = largest_delta(session, experts, draw(tokens, top_k, seed, torch.float32))
    assert list(deltas) == list(ACTIVATION_NAMES)
    assert max(deltas.values()) < 1e-4, deltas


def test_all_tokens_of_one_expert_and_each_token_of_another(every_activation):
    experts, session = every_activation
    inputs = draw(EXPERTS, 1, 0, torch.float32)
    for chosen in (torch.full((EXPERTS, 1), 3), torch.arange(EXPERTS)[:, None], torch.arange(EXPERTS).flip(0)[:, None]):
        assert max(largest_delta(session, experts, inputs | {"chosen": chosen}).values()) < 1e-4


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    experts = {"gated": make_experts(dtype=torch.float16), "plain": make_experts("gelu", False, torch.float16)}
    return experts, open_experts(tmp_path_factory.mktemp("half"), experts)


@settings(max_examples=20)
@given(tokens=st.integers(1, 40), top_k=st.integers(1, EXPERTS), seed=st.integers(0, 999))
def test_half_precision(half, tokens, top_k, seed):
    experts, session = half
    inputs = draw(tokens, top_k, seed, torch.float16)
    weights = inputs["weights"]
    deltas = largest_delta(session, experts, inputs | {"weights": weights / weights.sum(dim=-1, keepdim=True)})
    assert max(deltas.values()) < 2e-2, deltas


def test_a_single_expert(tmp_path):
    experts = {"only": make_experts(count=1)}
    session = open_experts(tmp_path, experts, count=1)
    for tokens in (1, 2, 9):
        assert largest_delta(session, experts, draw(tokens, 1, tokens, torch.float32, count=1))["only"] < 1e-4


def test_only_the_chosen_experts_are_computed(tmp_path):
    """Experts 4 and 5 hold no numbers: whoever computed them and weighed the result by zero would see it."""
    experts = {"routed": make_experts()}
    with torch.no_grad():
        experts["routed"].gate_up_proj[4:] = torch.nan
        experts["routed"].down_proj[4:] = torch.nan
    session = open_experts(tmp_path, experts)
    feeds = {name: tensor.numpy() for name, tensor in draw(9, 2, 1, torch.float32, count=4).items()}
    [found] = session.run(None, feeds)
    assert np.isfinite(found).all()
    feeds["chosen"][3, 1] = 5
    [found] = session.run(None, feeds)
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()


def test_the_graph_holds_one_loop_for_each_product_and_every_weight_once(tmp_path):
    open_experts(tmp_path, {"routed": make_experts()})
    graph = onnx.load(tmp_path / "experts.onnx").graph
    assert [node.op_type for node in graph.node].count("Loop") == 2
    stacks = [list(tensor.dims) for tensor in graph.initializer if len(tensor.dims) == 3]
    assert sorted(stacks) == [[EXPERTS, DIM, WIDTH], [EXPERTS, 2 * WIDTH, DIM]]


def test_a_model_keeps_its_own_dispatchers():
    model = tiny_v2()
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    before = [layer.dispatch for layer in layers]
    with pytest.raises(RuntimeError, match="halfway"), traceable_experts(model):
        assert layers and all(isinstance(layer.dispatch, GraphDispatcher) for layer in layers)
        raise RuntimeError("halfway")
    assert [layer.dispatch for layer in layers] == before


def test_a_model_without_experts_needs_no_translations():
    assert expert_translations(tiny_v2(first_k_dense_replace=2)) == {}


def test_the_operator_says_what_the_documented_product_says():
    x, stack = torch.randn(7, DIM), torch.randn(3, WIDTH, DIM)
    counts = torch.tensor([4, 0, 3])
    expected = torch.cat((x[:4] @ stack[0].T, x[4:] @ stack[2].T))
    torch.testing.assert_close(opaque_grouped_linear(x, stack, counts), expected)

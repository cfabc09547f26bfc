"""A layer that is recomputed: when it is, how often, and that hooks run once."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from modelwright.layers.checkpointed import CheckpointedLayer
from tests.fakes import MOE, recompute_layers, tiny_v2, tokens


class Double(CheckpointedLayer):
    """Twice its input by a weight; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.passes = nn.Parameter(torch.tensor(2.0)), 0

    def forward(self, x: Tensor, *, plus: float = 0.0) -> Tensor:
        self.passes += 1
        return self.weight * x + plus


class DoubleAgain(Double):
    """A subclass, whose ``forward`` is the layer's wrapped once more."""

    def forward(self, x: Tensor, *, plus: float = 0.0) -> Tensor:
        return super().forward(x, plus=plus)


def recomputed(layer: Any) -> Any:
    layer.gradient_checkpointing = True
    layer._gradient_checkpointing_func = lambda function, *inputs: checkpoint(function, *inputs, use_reentrant=False)
    return layer


@pytest.mark.parametrize("kind", [Double, DoubleAgain])
def test_the_backward_pass_computes_it_again_with_the_same_gradient(kind):
    plain, layer = kind(), recomputed(kind())
    seen: list[str] = []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    x, y = torch.tensor(3.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    assert plain(x, plus=1.0) == layer(y, plus=1.0) == 7.0
    (plain(x, plus=1.0) * 5).backward()
    before = layer.passes
    (layer(y, plus=1.0) * 5).backward()
    assert layer.passes == before + 2 and len(seen) == 2  # a hook is no part of what is computed again
    assert x.grad == y.grad and plain.weight.grad == layer.weight.grad


@pytest.mark.parametrize("why", ["evaluation", "no gradients", "off"])
def test_otherwise_it_is_computed_once(why):
    layer = recomputed(Double())
    layer.train(why != "evaluation")
    layer.gradient_checkpointing = why != "off"
    x = torch.tensor(1.0, requires_grad=True)
    with torch.set_grad_enabled(why != "no gradients"):
        out = layer(x)
    if why != "no gradients":
        out.backward()
    assert layer.passes == 1


def test_transformers_sets_it_for_every_layer_or_every_nth():
    model = tiny_v2(base=MOE, num_hidden_layers=3).train()
    recompute_layers(model)
    layers = [module for module in model.modules() if isinstance(module, CheckpointedLayer)]
    assert [layer.gradient_checkpointing for layer in layers] == [True] * 3
    model(tokens(1, 4), labels=tokens(1, 4)).loss.backward()
    model._set_gradient_checkpointing(False)
    assert not any(layer.gradient_checkpointing for layer in layers)
    model._set_gradient_checkpointing(True, checkpoint)
    assert all(layer.gradient_checkpointing for layer in layers)
    if "every_n_layers" in inspect.signature(PreTrainedModel._set_gradient_checkpointing).parameters:
        model._set_gradient_checkpointing(True, checkpoint, every_n_layers=2)
        assert [layer.gradient_checkpointing for layer in layers] == [True, False, True]

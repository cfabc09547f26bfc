"""Whatever is asked of an operation beyond numbers is torch's business, for each operation that a kernel computes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from modelwright.ops.attention import attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import KernelAwareMode, only_numbers
from modelwright.ops.experts import experts
from modelwright.ops.gated import gated_product
from modelwright.ops.input_major import input_major_linear
from modelwright.ops.latent import latent_to_values, query_to_latent
from modelwright.ops.linear import linear, linears
from modelwright.ops.norm import rms_norm
from modelwright.ops.page_writes import write_pages
from modelwright.ops.pages import Pages
from modelwright.ops.quick_gelu import quick_gelu
from modelwright.ops.rotary import rotate, rotate_interleaved
from modelwright.ops.routing import router_scores
from modelwright.ops.stored import stored_experts, stored_linear
from modelwright.ops.weight_only import quantise_int8

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CHOICE = torch.tensor([[0, 1]]), torch.ones(1, 2)
X, W = torch.randn(1, 16), torch.randn(16, 16)
STACKS = torch.randn(2, 32, 16), torch.randn(2, 16, 16)
STORED = [quantise_int8(stack) for stack in STACKS]


def _written(x: Tensor) -> Tensor:
    """Pages whose third place holds ``x``."""
    pages = Pages(0 * x.repeat(8, 1).view(2, 4, 16))
    write_pages(pages, torch.tensor([2]), x)
    return pages.rows


OPERATIONS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "linear": ("linears", lambda x: linear(x, W)),
    "linears": ("linears", lambda x: linears(x, [(W, None), (W, None)])[1]),
    "rms_norm": ("rms_norm", lambda x: rms_norm(x, torch.ones(16), 1e-6)),
    "gated_product": ("silu_product", lambda x: gated_product(x, x, F.silu)),
    "quick_gelu": ("quick_gelu", quick_gelu),
    "input_major_linear": ("columns", lambda x: input_major_linear(x, W, W[0])),
    "write_pages": ("place", _written),
    "rotate": ("rotate", lambda x: rotate(x[:, None, None], X[None, :, :8], X[None, :, :8], rotate_interleaved)),
    "router_scores": ("route", lambda x: router_scores(x, W, "softmax", torch.float32)[1]),
    "experts": ("experts", lambda x: experts(x, *CHOICE, *STACKS, F.silu)),
    "query_to_latent": ("latent_in", lambda x: query_to_latent(x[None, None], W)),
    "latent_to_values": ("latent_to_values", lambda x: latent_to_values(x[None, None], W, 8)),
    "stored_linear": ("linear", lambda x: stored_linear(x, quantise_int8(W))),
    "stored_experts": ("experts", lambda x: stored_experts(x, *CHOICE, STORED[0], STORED[1], F.silu)),
}


class Strange(Tensor):
    """A tensor that is not multiplied as its numbers lie, as those that are stored in integers or spread are not."""


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class WatchingKernelsToo(KernelAwareMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The names of the kernels as they are called."""
    names: list[str] = []
    for name in {name for name, _ in OPERATIONS.values()}:
        own = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, own=own, **k: names.append(name) or own(*a, **k))
    return names


@pytest.mark.usefixtures("wide_registers")
@pytest.mark.parametrize("mode", [nullcontext, WatchingKernelsToo, torch.inference_mode])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_numbers_alone_come_from_the_kernel(operation, mode, called):
    kernel, run = OPERATIONS[operation]
    with torch.no_grad(), mode():
        run(X)
    assert called == [kernel]


TRAINED = {
    "gated_product": {"silu_product"},
    "rotate": {"rotate"},
    "experts": {"silu_product"},
    "stored_experts": {"silu_product"},
}
"""The kernels of an operation whose gradients they give too."""


@pytest.mark.filterwarnings("ignore:.*batching rule for aten..index_copy_")  # of pages: only here
@pytest.mark.parametrize("operation", OPERATIONS)
def test_everything_else_comes_from_torch(operation, called):
    _, run = OPERATIONS[operation]
    x = X.clone().requires_grad_()
    run(x).sum().backward()
    assert x.grad is not None
    assert set(called) == TRAINED.get(operation, set())
    called.clear()
    run(X)  # gradients are on, whoever asks for them
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            run(X)
        for mode in (Watching(), FlopCounterMode(display=False)):
            with mode:
                run(X)
        run(X.as_subclass(Strange))
        if "experts" not in operation:  # they sort the tokens, which no transformation can
            torch.func.vmap(run)(X[None])
    assert called == []


@pytest.mark.parametrize("operation", ["linear", "rms_norm", "gated_product", "rotate", "router_scores"])
def test_exported_and_compiled_graphs_have_none(operation, called):
    _, run = OPERATIONS[operation]

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x)

    with torch.no_grad():
        wanted = run(2 * X)
        called.clear()
        exported = torch.export.export(Layer(), (X,)).module()
        compiled = torch.compile(Layer(), backend="eager", fullgraph=True)
        for graph in (exported, compiled):
            torch.testing.assert_close(graph(2 * X), wanted, rtol=1e-5, atol=1e-5)
    assert called == []


@torch.inference_mode()
def test_attention_without_a_mask_comes_from_the_kernel(monkeypatch):
    q = torch.randn(1, 2, 16, 8).bfloat16()
    if not kernels.serves_prefill(q, q, q):
        pytest.skip("this processor multiplies bf16 by torch alone")
    calls, own = [], kernels.prefill
    monkeypatch.setattr(kernels, "prefill", lambda *a, **k: calls.append(k) or own(*a, **k))
    for causal in (True, False):
        wanted = F.scaled_dot_product_attention(q, q, q, is_causal=causal, scale=0.5)
        torch.testing.assert_close(attention(q, q, q, None, 0.5, causal=causal), wanted, rtol=2**-6, atol=2**-6)
    assert calls == [{"causal": True}, {"causal": False}]
    attention(q, q, q, torch.ones(16, 16).tril().bool(), 0.5)
    attention(q, q, q, None, 0.5, dropout=0.5)
    assert len(calls) == 2


def test_others_than_the_first_tensor_are_looked_at():
    with torch.no_grad():
        assert only_numbers(X, W, None, nn.Parameter(W))
        assert not only_numbers(X, None, W.as_subclass(Strange))

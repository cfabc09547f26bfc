"""Whole graphs of every family's pass, compiled and exported, with a mask whose padding the graph does not know."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from modelwright.errors import RequestError
from modelwright.families.llama.padding import packed_documents
from modelwright.hf.arguments import PassInputs
from modelwright.hf.documents import DocumentMarks
from tests.fakes import GROUPED, MHA, NOAUX, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, left_padded, tiny_llama

FAMILIES = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, experts": lambda: tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS),
    "mindformers": tiny_llama,
    "latent, noaux_tc": lambda: tiny_v2(base=NOAUX),
    "heads": lambda: tiny_v2(base=MHA),
    "experts that are too narrow for torch's kernel": lambda: tiny_v2(base=GROUPED, moe_intermediate_size=6),
    "pictures": tiny_vl2,
    "imagegpt": lambda: tiny_imagegpt(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
}


class Logits(nn.Module):
    """A pass of ids and a mask, without a cache, and its loss where it learns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, labels=ids if self.training else None)
        return output.logits, output.loss


EXPORTED, COMPILED = "latent, noaux_tc", "llama"
"""The families whose graphs are made in the quick tests."""


def marked(quick: str) -> list[Any]:
    """All families, of which one is quick."""
    return [
        pytest.param(make, id=name, marks=[] if name == quick else pytest.mark.slow) for name, make in FAMILIES.items()
    ]


def inputs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of several lengths; with padding, and with none."""
    ids = tokens(3, 9, vocab=16)
    padded, whole = left_padded(ids, [9, 5, 2]), torch.ones_like(ids)
    return [(ids, padded), (ids, whole), (ids[:2, :4], whole[:2, :4])]


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_a_trace_of_torch_jit_computes_other_numbers_of_the_same_shape(make):
    class LogitsAlone(Logits):
        def forward(self, ids, mask):
            return super().forward(ids, mask)[0]

    model, other = LogitsAlone(make()).eval(), tokens(3, 9, vocab=16, seed=1)
    (_, padded), (ids, whole), _ = inputs()
    traced, real = torch.jit.trace(model, (ids, whole), check_trace=False), padded.bool()
    torch.testing.assert_close(traced(other, padded)[real], model(other, padded)[real], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("build", marked(EXPORTED))
@torch.no_grad()
def test_an_exported_pass_serves_every_mask(build):
    passed, example = Logits(build()).eval(), (tokens(2, 6, vocab=16), torch.ones(2, 6, dtype=torch.long))
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("tokens", min=2, max=16)
    shapes = {"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    program = torch.export.export(passed, example, dynamic_shapes=shapes, strict=False).module()
    for ids, mask in inputs():
        found, wanted = program(ids, mask)[0], passed(ids, mask)[0]
        torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("build", marked(COMPILED))
def test_a_compiled_pass_is_one_graph_and_learns_the_same(build):
    torch._dynamo.reset()
    model = build()
    passed = Logits(model).train()
    compiled = torch.compile(passed, fullgraph=True, backend="aot_eager")
    for ids, mask in inputs()[:2]:
        (found, loss), (wanted, own) = compiled(ids, mask), passed(ids, mask)
        torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(loss, own)
        gradients = [torch.autograd.grad(each, used(model)) for each in (loss, own)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def used(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a text without pictures reads."""
    return [
        p for name, p in model.named_parameters() if not name.startswith(("vision", "projector", "image_", "view_"))
    ]


@pytest.mark.slow
def test_experts_in_bfloat16_are_one_graph_too():
    torch._dynamo.reset()
    passed = Logits(tiny_v2().bfloat16()).train()
    compiled = torch.compile(passed, fullgraph=True, backend="aot_eager")
    (_, loss), (_, own) = compiled(*inputs()[0]), passed(*inputs()[0])
    torch.testing.assert_close(loss, own, atol=2e-2, rtol=2e-2)
    loss.backward()


class NextLogits(nn.Module):
    """A pass that continues a cache, with a mask over past and new tokens or without."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor | None) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("build", marked(COMPILED))
@torch.no_grad()
def test_decoding_over_a_static_cache_is_one_graph_for_every_length(build, padded):
    model, ids = build().eval(), tokens(3, 9, vocab=16)
    mask = left_padded(ids, [9, 8, 6]) if padded else None
    graphs = 0

    def counted(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(NextLogits(model), fullgraph=True, backend=counted)
    passed, growing, static = NextLogits(model), DynamicCache(), StaticCache(model.config, max_cache_len=12)
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 9)):
        part, seen = ids[:, start:stop], None if mask is None else mask[:, :stop]
        wanted = passed(part, growing, seen)
        found = (compiled if start else passed)(part, static, seen)
        real = slice(None) if mask is None else mask[:, start:stop].bool()
        torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-5)
        if mask is None and stop - start == 1:
            assert graphs == 1


def test_over_a_past_that_a_graph_does_not_know_documents_are_refused():
    config, past = tiny_llama(use_eod_attn_mask_compression=True).config, torch.tensor(3)
    decoded, several = (PassInputs(2, n, past.device, input_ids=tokens(2, n), past=past) for n in (1, 2))
    assert packed_documents(config, decoded) is None
    with pytest.raises(RequestError, match="compiled over a static cache must bring one token of each row, got 2"):
        packed_documents(config, several)
    with pytest.raises(RequestError, match="must come without a past, and the cache holds some tokens"):
        DocumentMarks(numbers=torch.zeros(2, 2, dtype=torch.long)).documents(2, 2, past, None)

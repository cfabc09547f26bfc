"""Few rows by the kernels and many by torch: the rule, the same numbers on both sides, and what is left to torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import Unit
from modelwright.ops.experts import experts, looped_experts, prefers_expert_kernel
from modelwright.ops.linear import linear, linears, prefers_kernel
from modelwright.ops.stored import prefers_stored_kernel

compiled = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-8}}


@pytest.fixture
def called(monkeypatch):
    """The names of the kernels as they are called."""
    names = []

    def watch(name, kernel):
        return lambda *args: names.append(name) or kernel(*args)

    for name in ("linears", "experts"):
        monkeypatch.setattr(kernels, name, watch(name, getattr(kernels, name)))
    return names


@pytest.fixture
def set_processor(monkeypatch, set_vectors) -> Callable[[Unit, bool], None]:
    """Makes the rules those of a processor with a unit and with wide registers or none."""

    def set_both(unit: Unit, wide: bool) -> None:
        monkeypatch.setattr(kernels, "unit", lambda: unit)
        set_vectors("AVX512" if wide else "AVX2")

    return set_both


@pytest.mark.parametrize(
    ("unit", "wide", "dtype", "few"),
    [
        (Unit.STREAMS, True, torch.bfloat16, range(1, 9)),
        (Unit.STREAMS, False, torch.bfloat16, range(1, 64)),
        (Unit.DOTS, True, torch.bfloat16, range(1, 65)),
        (Unit.TILES, True, torch.bfloat16, range(1, 65)),
        (Unit.STREAMS, True, torch.float32, range(1, 33)),
        (Unit.STREAMS, False, torch.float32, range(2, 9)),
        (Unit.TILES, True, torch.float32, range(1, 33)),
        (Unit.TILES, True, torch.float16, range(0)),
    ],
)
def test_how_many_rows_are_few(set_processor, unit, wide, dtype, few):
    set_processor(unit, wide)
    assert [rows for rows in range(1, 600) if prefers_kernel(rows, dtype)] == list(few)


@pytest.mark.parametrize(
    ("unit", "wide", "dtype", "most", "of_an_expert"),
    [
        (Unit.STREAMS, True, torch.float32, 8, 12),
        (Unit.STREAMS, True, torch.bfloat16, 8, 12),
        (Unit.STREAMS, False, torch.float32, 32, 12),
        (Unit.STREAMS, False, torch.bfloat16, 64, 40),
        (Unit.DOTS, True, torch.float32, 8, 12),
        (Unit.DOTS, True, torch.bfloat16, 512, None),
        (Unit.TILES, True, torch.bfloat16, 512, None),
    ],
)
def test_how_many_choices_and_rows_of_stored_weights_are_few(set_processor, unit, wide, dtype, most, of_an_expert):
    set_processor(unit, wide)
    assert prefers_expert_kernel((of_an_expert or 500) * 8, 8, dtype)
    assert prefers_expert_kernel((of_an_expert or 500) * 8 + 1, 8, dtype) is (of_an_expert is None)
    assert [prefers_stored_kernel(rows, dtype) for rows in (0, 1, most, most + 1)] == [
        False,
        True,
        True,
        False,
    ]


@compiled
@pytest.mark.usefixtures("wide_registers")
@pytest.mark.parametrize(("dtype", "rows", "by"), [
    (torch.bfloat16, 8, ["linears"]),
    (torch.bfloat16, 65, []),
    (torch.float32, 32, ["linears"]),
    (torch.float32, 33, []),
])  # fmt: skip
@torch.inference_mode()
def test_layers_equal_torch_on_both_sides_of_the_rule(called, dtype, rows, by):
    torch.manual_seed(rows)
    x = torch.randn(1, rows, 40).to(dtype)
    layers = [
        ((torch.randn(24, 40) / 40**0.5).to(dtype), torch.randn(24).to(dtype)),
        ((torch.randn(7, 40) / 40**0.5).to(dtype), None),
    ]
    outs = linears(x, layers)
    for out, (weight, bias) in zip(outs, layers, strict=True):
        wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        assert out.dtype == dtype and out.shape == (1, rows, len(weight))
        torch.testing.assert_close(out.float(), wide, **CLOSE[dtype])
    assert called == by
    assert torch.equal(linear(x, *layers[0]), outs[0])


@compiled
@pytest.mark.parametrize(("tokens", "by"), [(1, ["experts"]), (24, ["experts"]), (25, [])])
@torch.inference_mode()
def test_experts_equal_the_loop_on_both_sides_of_the_rule(called, tokens, by):
    torch.manual_seed(tokens)
    x, w_in, w_out = torch.randn(tokens, 16), torch.randn(4, 24, 16) / 4, torch.randn(4, 16, 12) / 4
    chosen, weights = torch.rand(tokens, 4).argsort(dim=-1)[:, :2], torch.rand(tokens, 2)
    out = experts(x, chosen, weights, w_in, w_out, F.silu)
    torch.testing.assert_close(out, looped_experts(x, chosen, weights, w_in, w_out, F.silu), rtol=1e-5, atol=1e-5)
    assert called == by


@torch.inference_mode()
def test_without_kernels_the_numbers_are_torchs(monkeypatch):
    monkeypatch.setattr(kernels, "serves_linear", lambda *_: False)
    x, weight, bias = torch.randn(2, 16), torch.randn(8, 16), torch.randn(8)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))

"""Every operation with a kernel is compared with its reference; planted faults are found, whichever kernel has them."""

from functools import partial

import pytest
import torch

from modelwright.ops import check
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import build, layouts
from modelwright.ops.check import compared, computed

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
ASKED = {layouts.BEST_UNIT.name, layouts.SERVES_PREFILL.name, layouts.SERVES_TRAINING.name}
"""Functions that say something of the kernels and compute nothing."""


@needs_kernels
def test_every_kernel_is_right_here():
    rows = list(compared(CPU))
    assert [row for row in rows if not row.right] == []
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}


@needs_kernels
def test_every_function_of_the_library_is_run(monkeypatch):
    ran = set()
    own = build.build().kernels

    def noting(name: str):
        return build.Kernel(name, lambda *args: ran.add(name) or own[name].run(*args))

    monkeypatch.setattr(build, "build", lambda: build.Build({name: noting(name) for name in own}))
    list(compared(CPU))
    lacking = set() if build.ask(layouts.SERVES_PREFILL) else {layouts.PREFILL_ROWS.name}
    if not kernels.multiplies_by_vectors(torch.bfloat16):
        lacking |= {layouts.GROUPED_ROWS.name, layouts.GROUPED_WEIGHTS.name}
    if not kernels.multiplies_by_vectors(torch.float32):
        lacking |= {layouts.ATTEND_FORWARD.name, layouts.ATTEND_BACKWARD.name}
    assert ran >= set(own) - ASKED - lacking


@pytest.mark.one_in(3)
@needs_kernels
@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (layouts.LINEAR_ROWS, {"linear", "linear, int8", "linear, int4"}),
        (layouts.EXPERT_ROWS, {"experts", "experts, int8", "experts, int4"}),
        (layouts.PAGED_DECODE, {"decode_attention", "decode_latent_attention"}),
        (layouts.LATENT_IN, {"query_to_latent"}),
        (layouts.SILU_PRODUCT, {"gated_product"}),
        (layouts.SILU_PRODUCT_BACK, {"gated_product, trained"}),
        (layouts.ATTEND_BACKWARD, {"trained_attention"} if kernels.multiplies_by_vectors(torch.float32) else set()),
        (layouts.GROUPED_WEIGHTS, {"grouped_linear"} if kernels.multiplies_by_vectors(torch.bfloat16) else set()),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_a_kernel_that_does_nothing_is_found(monkeypatch, function, ops):
    planted = dict(build.build().kernels) | {function.name: build.Kernel(function.name, lambda *_: None)}
    monkeypatch.setattr(build, "build", lambda: build.Build(planted))
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)  # what was there before could be right
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    wrong = {row.op for row in compared(CPU) if not row.right}
    assert wrong >= ops and not wrong & {"rms_norm", "rotate"}


@pytest.mark.slow
def test_without_kernels_torch_computes_everything_and_says_why(monkeypatch):
    monkeypatch.setattr(build, "build", lambda: build.Build(reason="there is no compiler"))
    assert list(compared(CPU)) == []
    for one in computed(CPU):
        assert one.backend == "torch"
        assert one.others == {"cpu": "there is no compiler", "triton": "its kernels are for GPUs"}


@needs_kernels
def test_what_computes_is_what_the_dispatch_picks(monkeypatch):
    backends = {one.op: one.backend for one in computed(CPU)}
    assert backends["linear"] == backends["rms_norm"] == backends["decode_attention"] == "cpu"
    monkeypatch.setattr(kernels, "serves_linear", lambda *_: False)
    found = {one.op: one for one in computed(CPU)}
    assert found["linear"].backend == "torch" and found["rms_norm"].backend == "cpu"
    assert found["linear"].others["cpu"] == "it has no kernel for this, or a slower one"


def test_a_number_that_is_none_is_wrong(monkeypatch):
    def broken(draw):
        return partial(torch.full, (2,), torch.nan), partial(torch.ones, 2)

    assert check._run(broken, check.Draw.typical(torch.float32, CPU)) == ("torch", torch.inf)

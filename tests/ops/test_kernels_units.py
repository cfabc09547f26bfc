"""Several rows of bf16 through each unit that multiplies: the same products, whatever the shape and the threads.

Machines without a matrix unit run that path through ``emulated_amx.h``, which stands in for its seven instructions.
"""

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import Unit, build, compiler, layouts
from modelwright.ops.experts import looped_experts
from modelwright.ops.weight_only import Int4Weight, Int8Weight, dequantise, quantise_int4, quantise_int8

pytestmark = pytest.mark.skipif(
    kernels.unit() == Unit.STREAMS, reason="this processor has no dot products of bf16, or there are no kernels"
)
CLOSE = {"rtol": 2**-7, "atol": 2**-8}
"""The sums are taken in fp32; a bf16 result is the nearest of its neighbours, or the next."""
FEW = {Int8Weight: 8, Int4Weight: 16}
"""Rows that meet the integers themselves."""
STORED = {
    "plain": lambda weight: weight,
    "int8": quantise_int8,
    "int4/32": lambda weight: quantise_int4(weight, 32),
    "int4/64 offset": lambda weight: quantise_int4(weight, 64, offset=True),
    "int4/128": lambda weight: quantise_int4(weight, 128),
}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> dict[str, build.Kernel]:
    """The kernels for linear layers and experts, compiled for a processor that has tiles."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in Path(build.__file__).parent.iterdir():
        if path.suffix == ".h" or path.name in ("linear.cpp", "experts.cpp"):
            shutil.copy(path, folder)
    tiles = Path(__file__).with_name("emulated_amx.h")
    extra = ("-O1", "-U__AMX_TILE__", "-U__AMX_BF16__", "-D__AMX_TILE__", "-D__AMX_BF16__", "-include", str(tiles))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", (*compiler.FLAGS, *extra))
        headers = {"layouts.h": layouts.header()}
        library = compiler.compiled(folder, headers, compiler.find_compiler(), [folder / "made"])
    functions = [layouts.BEST_UNIT, layouts.LINEAR_ROWS, layouts.EXPERT_ROWS]
    return build.bind(ctypes.CDLL(str(library)), functions)


@pytest.fixture(params=Unit, ids=lambda unit: unit.name.lower())
def by(request, monkeypatch) -> Unit:
    """Each unit in turn."""
    if request.param == Unit.TILES:
        emulated = build.Build(request.getfixturevalue("emulated"))
        monkeypatch.setattr(build, "build", lambda: emulated)
    return request.param


def wide(weight: Tensor | Int8Weight | Int4Weight, by: Unit, rows: int) -> Tensor:
    """The weight as it is multiplied."""
    if isinstance(weight, Tensor):
        return weight.float()
    rounded = by != Unit.STREAMS and rows > FEW[type(weight)]
    return dequantise(weight, torch.bfloat16 if rounded else torch.float32).float()


def weight_of(kind: str, *shape: int) -> Any:
    return STORED[kind]((torch.randn(shape) / shape[-1] ** 0.5).bfloat16())


@pytest.mark.parametrize("kind", STORED)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 70),
    out=st.integers(1, 100) | st.sampled_from([128, 300]),
    inputs=st.sampled_from([128, 640, 1152]),
    odd=st.integers(0, 127),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_linear_equals_torch(by, kind, rows, out, inputs, odd, bias, seed):
    torch.manual_seed(seed)
    if not kind.startswith("int4"):
        inputs -= odd  # any width
    weight = weight_of(kind, out, inputs)
    x = torch.randn(rows, inputs + 3).bfloat16()[:, :inputs]  # rows further apart than they are wide
    shift = torch.randn(out).bfloat16() if bias else None
    expected = F.linear(x.float(), wide(weight, by, rows), None if shift is None else shift.float())
    torch.testing.assert_close(kernels.linear(x, weight, shift, by).float(), expected, **CLOSE)


@pytest.mark.parametrize("kind", STORED)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 70), top_k=st.integers(1, 4), width=st.sampled_from([128, 384]), seed=st.integers(0, 2**16)
)
def test_experts_equal_the_loop(by, kind, tokens, top_k, width, seed):
    torch.manual_seed(seed)
    dim = 128 if kind != "plain" else 72
    x, weights = torch.randn(tokens, dim).bfloat16(), torch.rand(tokens, top_k)
    chosen = torch.rand(tokens, 6).argsort(dim=-1)[:, :top_k]
    rows = chosen.flatten().bincount(minlength=6).tolist()
    w_in, w_out = weight_of(kind, 6, 2 * width, dim), weight_of(kind, 6, dim, width)
    stacks = [torch.stack([wide(weight, by, count)[e] for e, count in enumerate(rows)]) for weight in (w_in, w_out)]
    expected = looped_experts(x.float(), chosen, weights, *stacks, F.silu)
    result = kernels.experts(x, chosen, weights, w_in, w_out, by)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=2e-2, atol=2e-2)  # the hidden units are bf16 too


def test_layers_of_one_input_share_a_call(by):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 200).bfloat16()
    layers = [(weight_of("plain", 130, 200), torch.randn(130).bfloat16()), (weight_of("int8", 7, 200), None)]
    for out, (weight, bias) in zip(kernels.linears(x, layers, by), layers, strict=True):
        expected = F.linear(x.float(), wide(weight, by, 18), None if bias is None else bias.float())
        assert out.shape == (2, 9, len(expected[0, 0]))
        torch.testing.assert_close(out.float(), expected, **CLOSE)


def test_not_a_number_stays_in_its_row(by):
    x, weight = torch.ones(20, 70).bfloat16(), torch.ones(50, 70).bfloat16()
    x[3, 69], weight[49, 0] = torch.nan, torch.inf
    out = kernels.linear(x, weight, by=by)
    assert out[3].isnan().all() and (out[torch.arange(20) != 3, 49] == torch.inf).all()
    assert (out[torch.arange(20) != 3, :49] == 70).all()


def test_tokens_do_not_depend_on_who_else_chose_an_expert(by):
    torch.manual_seed(0)
    w_in, w_out = weight_of("plain", 4, 96, 64), weight_of("plain", 4, 64, 48)
    x, chosen = torch.randn(40, 64).bfloat16(), torch.tensor([[2, 0]]).expand(40, 2)
    together = kernels.experts(x, chosen, torch.ones(40, 2), w_in, w_out, by)
    assert torch.equal(together[:7], kernels.experts(x[:7], chosen[:7], torch.ones(7, 2), w_in, w_out, by))


def test_threads_share_the_work_and_change_nothing(by, three_threads):
    torch.manual_seed(0)
    x, weight = torch.randn(37, 1100).bfloat16(), weight_of("plain", 500, 1100)
    w_in, w_out = torch.randn(4, 512, 1100).bfloat16() / 32, torch.randn(4, 1100, 256).bfloat16() / 16
    chosen = torch.rand(37, 4).argsort(dim=-1)[:, :2]
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        routed = kernels.experts(x, chosen, torch.ones(37, 2), w_in, w_out, by)
        results.append((kernels.linear(x, weight, by=by), routed))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("inputs", [64, 192, 576, 1088])
def test_a_last_run_of_int4_may_stand_alone(by, group, offset, inputs):
    torch.manual_seed(inputs)
    weight = quantise_int4(torch.randn(13, inputs) / inputs**0.5, group, offset)
    for rows in (1, 2, 5, 16):
        x = torch.randn(rows, inputs).bfloat16()
        expected = F.linear(x.float(), dequantise(weight))
        torch.testing.assert_close(kernels.linear(x, weight, by=by).float(), expected, **CLOSE)


@pytest.mark.parametrize("store", [quantise_int8, lambda weight: quantise_int4(weight, 32, offset=True)])
@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_integers_meet_x_exactly_but_for_what_is_tiny_beside_its_neighbours(by, store, scale):
    torch.manual_seed(0)
    weight = store(torch.randn(24, 1088) / 33)
    x = (torch.rand(2, 1088) + 0.02).bfloat16()  # all within 2^7 of each other
    expected = F.linear(x.double(), dequantise(weight).double())
    exact = kernels.linear(x * scale, weight, by=by).double() / scale
    torch.testing.assert_close(exact, expected, rtol=2**-8, atol=1e-6)
    x[:, 700] = 1000  # those of its block are tiny now, those of other blocks are not
    expected = F.linear(x.double(), dequantise(weight).double())
    block = dequantise(weight)[:, 512:1024].double().abs().sum(dim=1)
    error = (kernels.linear(x * scale, weight, by=by).double() / scale - expected).abs()
    assert (error <= 2**-15 * 1000 * block + 2**-8 * expected.abs()).all()


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_not_a_number_stays_in_its_row_of_integers(by, odd):
    x = torch.ones(3, 640).bfloat16()
    x[1, 600] = odd
    for weight in (quantise_int8(torch.ones(7, 640)), quantise_int4(torch.ones(7, 640))):
        out = kernels.linear(x, weight, by=by)
        assert not out[1].isfinite().any()
        torch.testing.assert_close(out[[0, 2]].float(), torch.full((2, 7), 640.0), **CLOSE)


@pytest.mark.parametrize("rows", [1, 30])
def test_layers_large_and_small_are_shared_out_whole(by, three_threads, rows):
    torch.manual_seed(0)
    x = torch.randn(rows, 72).bfloat16()
    layers = [(weight_of("plain", out, 72), torch.randn(out).bfloat16()) for out in (1, 1500, 7, 96, 3)]
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        for out, (weight, bias) in zip(kernels.linears(x, layers, by), layers, strict=True):
            torch.testing.assert_close(out.float(), F.linear(x.float(), weight.float(), bias.float()), **CLOSE)


def test_no_rows_give_none(by):
    assert kernels.linear(torch.zeros(0, 64).bfloat16(), weight_of("plain", 5, 64), by=by).shape == (0, 5)


def test_the_best_unit_is_one_that_runs_here():
    assert kernels.unit() in (Unit.DOTS, Unit.TILES)
    x, weight = torch.randn(20, 96).bfloat16(), weight_of("plain", 40, 96)
    assert torch.equal(kernels.linear(x, weight), kernels.linear(x, weight, by=kernels.unit()))

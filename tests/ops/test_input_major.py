"""Products with weights that lie input by input: the kernel against fp64, and by whom what is computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.input_major import input_major_linear

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
BOUND = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
"""Of the sum of all products' absolute values: roundings of fp32 sums, and half a step of a result in bf16."""


def operands(rows, inputs, outputs, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, inputs), (inputs, outputs), (outputs,))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def check(found, x, weight, bias):
    x, weight = x.double(), weight.double()
    shift = 0 if bias is None else bias.double()
    size = x.abs() @ weight.abs() + (0 if bias is None else bias.double().abs())
    assert found.dtype in BOUND
    assert ((found.double() - (x @ weight + shift)).abs() <= BOUND[found.dtype] * size).all()


@needs_kernels
@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(1, 40),
    widths=st.tuples(st.integers(1, 200), st.integers(1, 300)),
    biased=st.booleans(),
    dtype=st.sampled_from(list(BOUND)),
)
@torch.no_grad()
def test_the_kernel_is_the_affine_map(rows, widths, biased, dtype):
    x, weight, bias = operands(rows, *widths, dtype)
    bias = bias if biased else None
    check(kernels.columns(x, weight, bias), x, weight, bias)


@needs_kernels
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("rows", range(1, 18))
@torch.no_grad()
def test_every_number_of_rows_has_the_shapes_of_imagegpt(rows, dtype):
    for inputs, outputs in ((512, 1536), (2048, 512)):
        x, weight, bias = operands(rows, inputs, outputs, dtype)
        check(kernels.columns(x, weight, bias), x, weight, bias)


@needs_kernels
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 33), (8, 64), (129, 515), (512, 300)])
@torch.no_grad()
def test_a_row_alone_is_multiplied_as_among_others(inputs, outputs, dtype):
    x, weight, bias = operands(9, inputs, outputs, dtype)
    assert torch.equal(kernels.columns(x[:1], weight, bias), kernels.columns(x, weight, bias)[:1])


@needs_kernels
@pytest.mark.parametrize("dtype", BOUND)
@torch.no_grad()
def test_nothing_is_written_beside_the_result(dtype, monkeypatch):
    """The result lies between two rows of marks, and strips are wider than its 37 columns."""
    x, weight, bias = operands(9, 33, 37, dtype)
    room = torch.full((11, 37), 7.0, dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: room[1:10])
    found = kernels.columns(x, weight, bias)
    assert found.data_ptr() == room[1].data_ptr()
    assert (room[0] == 7).all() and (room[10] == 7).all()
    check(found, x, weight, bias)


@needs_kernels
@torch.no_grad()
def test_threads_do_not_change_the_numbers(three_threads):
    x, weight, bias = operands(5, 700, 900, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(kernels.columns(x, weight, bias))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_kernels
@torch.no_grad()
def test_infinities_stay_where_they_are():
    """What stands beyond the last column of a strip, or beyond the last input, is no factor."""
    x, weight, bias = operands(3, 33, 37, torch.bfloat16)
    weight[:, 5] = float("inf")
    found = kernels.columns(x.abs(), weight, bias)
    assert (found[:, 5] == float("inf")).all()
    assert found[:, torch.arange(37) != 5].isfinite().all()


@needs_kernels
def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match="x is 4 wide and the weight takes 5"):
        kernels.columns(torch.zeros(2, 4), torch.zeros(5, 6))


class Counted(torch.Tensor):
    """A weight that computes in its own way."""


@needs_kernels
@pytest.mark.usefixtures("wide_registers")
def test_the_kernel_serves_what_it_is_faster_for_and_torch_the_rest(monkeypatch, set_vectors):
    used = []
    monkeypatch.setattr(kernels, "columns", lambda x, *rest: used.append(x) or x @ rest[0] + rest[1])

    def by_kernel(x, weight, bias) -> bool:
        used.clear()
        found = input_major_linear(x, weight, bias)
        torch.testing.assert_close(found, torch.addmm(bias, x, weight), atol=0.1, rtol=0.02)
        return bool(used)

    for dtype, wanted in {
        torch.float32: {1: True, 64: True, 65: False},
        torch.bfloat16: {1: True, 32: True, 33: False},
        torch.float64: {2: False},
        torch.float16: {2: False},
    }.items():
        with torch.no_grad():
            assert {rows: by_kernel(*operands(rows, 16, 8, dtype)) for rows in wanted} == wanted
    set_vectors("AVX2")
    with torch.no_grad():
        assert not by_kernel(*operands(1, 16, 8, torch.float32))
        assert by_kernel(*operands(1, 16, 8, torch.bfloat16)) and by_kernel(*operands(63, 16, 8, torch.bfloat16))
        assert not by_kernel(*operands(64, 16, 8, torch.bfloat16))
    set_vectors("AVX512")
    x, weight, bias = operands(2, 16, 8, torch.float32)
    assert not by_kernel(x, weight, bias)  # a gradient may be asked for
    with torch.no_grad():
        assert by_kernel(x, nn.Parameter(weight), bias)
        assert not by_kernel(x, weight.as_subclass(Counted), bias)
        assert not by_kernel(x, weight.t().contiguous().t(), bias)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not by_kernel(x, weight, bias)


def test_any_leading_dimensions_and_a_gradient():
    x, weight, bias = operands(6, 5, 4, torch.float64)
    wanted = torch.addmm(bias, x, weight)
    assert torch.equal(input_major_linear(x.view(2, 3, 5), weight, bias), wanted.view(2, 3, 4))
    with torch.no_grad():
        halves = [part.float() for part in (x, weight, bias)]
        assert input_major_linear(halves[0].view(2, 3, 5), *halves[1:]).shape == (2, 3, 4)
    assert torch.autograd.gradcheck(input_major_linear, [part.requires_grad_() for part in (x, weight, bias)])

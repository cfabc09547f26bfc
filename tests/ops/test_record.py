"""Tapes: what is recorded gives the same on other numbers, in little memory, and what cannot be recorded is refused."""

import gc

import pytest
import torch
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.record import Memory, NotRecordable, record

pytestmark = pytest.mark.usefixtures("without_autograd")
A = torch.arange(12.0).view(3, 4)


@pytest.fixture
def without_autograd():
    with torch.inference_mode():
        yield


def check(computation, *inputs: Tensor) -> None:
    """Repeated on what the inputs hold by then; the result is the same tensor each time, and the inputs are left."""
    repeat = record(computation, Memory())
    place = repeat().data_ptr()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for tensor in inputs:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 4)
        wanted = computation().clone()
        given = [tensor.clone() for tensor in inputs]
        assert torch.equal(repeat(), wanted) and repeat().data_ptr() == place
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, given, strict=True))


def test_operations_with_a_result_to_write_to():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    check(lambda: (x + 2 * y).sin() @ y.T + x.sum(), x, y)


def test_operations_without_one_and_with_several_results():
    x = torch.randn(3, 8)

    def computation() -> Tensor:
        best, places = x.topk(2)
        halves = x.to(torch.bfloat16).float()
        return torch.cat([best, halves.gather(1, places), x.new_zeros(3, 1), x.new_full((3, 1), 7.0)], dim=1)

    check(computation, x)


def test_views_and_writing_in_place():
    x = torch.randn(4, 6)

    def computation() -> Tensor:
        own = torch.empty(6, 4)
        own.copy_(x.T)
        own[1:3].mul_(3).add_(x[:2, :4])
        own.view(-1)[::5] = x[0, 0]
        return own.unflatten(0, (2, 3)).transpose(0, 1)

    check(computation, x)


def test_strides_and_types_are_those_of_the_computation():
    x = torch.randn(2, 3, 4).transpose(0, 2)
    found = record(lambda: x.double() * 2, Memory())()
    assert found.dtype == torch.float64 and found.stride() == (x.double() * 2).stride()


def test_numbers_from_python_stay():
    x = torch.randn(3)

    def computation() -> Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(4.0)

    check(computation, x)


def test_state_outside_is_written_by_each_repeat():
    counter, x = torch.zeros(3), torch.ones(3)
    repeat = record(lambda: counter.add_(x) * 2, Memory())
    assert counter.tolist() == [1, 1, 1]
    repeat()
    assert repeat().tolist() == [6, 6, 6]


@pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels(dtype):
    x, norm = torch.randn(2, 32).to(dtype), torch.randn(32).to(dtype)
    weights = [torch.randn(16, 32).to(dtype), torch.randn(8, 32).to(dtype)]

    def computation() -> Tensor:
        normed = kernels.rms_norm(x, norm, 1e-6, True)
        first, second = kernels.linears(normed, [(weights[0], None), (weights[1], None)])
        return torch.cat([kernels.silu_product(first, first + 1), second], dim=1)

    check(computation, x)


def test_nothing_is_recorded_after_an_error():
    x = torch.randn(2, 32)
    with pytest.raises(ZeroDivisionError):
        record(lambda: x / (1 // 0), Memory())
    assert torch.equal(x + 1, x.add(1))


@pytest.mark.parametrize(
    ("computation", "who"),
    [
        (lambda: A * A.sum().item(), "item"),
        (lambda: A * A.tolist()[0][1], "tolist"),
        (lambda: A * float(A.numpy()[0, 1]), "numpy"),
        (lambda: A if A.sum() > 0 else -A, "__bool__"),
        (lambda: A * int(A[0, 1]), "__int__"),
        (lambda: A * float(A[0, 1]), "__float__"),
        (lambda: A[A > 1], "aten.index.Tensor"),
        (lambda: A.nonzero(), "aten.nonzero"),
    ],
)
def test_who_asks_for_numbers_is_refused(computation, who):
    with pytest.raises(NotRecordable, match=f"{who}.* asks for numbers"):
        record(computation, Memory())


@pytest.mark.slow
def test_memory_is_that_of_a_running_computation():
    """A hundred steps need the two or three tensors that live at the same time, and tapes of one memory share them."""
    x, memory = torch.randn(1000), Memory()

    def computation() -> Tensor:
        y = x
        for _ in range(100):
            y = (y + x).sin()
        return y

    repeat = record(computation, memory)
    assert memory.nbytes <= 4 * 4096
    others = [record(computation, memory) for _ in range(5)]
    assert memory.nbytes <= 4 * 4096
    assert all(torch.equal(each(), computation()) for each in [*others, repeat])


@pytest.mark.slow
def test_a_tensor_that_somebody_holds_keeps_its_memory():
    x, memory, held = torch.randn(1000), Memory(), []
    record(lambda: held.append(x + 1) or x * 2, memory)
    kept = held[0].clone()
    record(lambda: (x * 3).sin() + x, memory)
    assert torch.equal(held[0], kept)
    size = memory.nbytes
    held.clear()
    gc.collect()
    record(lambda: (x * 3).sin() + x, memory)
    assert memory.nbytes == size

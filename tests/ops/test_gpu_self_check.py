"""The Triton programs serve on a device only where they are right: planted faults leave their work to torch."""

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.notices import notices
from modelwright.ops.backends.triton import load, self_check
from modelwright.ops.experts import experts, looped_experts
from modelwright.ops.paged import decode_attention, paged_attention
from modelwright.ops.pages import Pages
from tests.ops.gpu import DEVICE, needs_triton

pytestmark = [needs_triton, pytest.mark.usefixtures("without_autograd")]
F32 = torch.float32


@pytest.fixture
def without_autograd() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch) -> Iterator[None]:
    """The GPU's kernels are asked for wherever the tests run, and those of the CPU are not."""
    monkeypatch.setattr(load, "DEVICES", [DEVICE.type])
    monkeypatch.setattr(kernels, "serves_decode", lambda *_: False)
    monkeypatch.setattr(kernels, "serves_experts", lambda *_: False)
    for check in (self_check.attention_failure, self_check.experts_failure):
        check.cache_clear()
    yield
    for check in (self_check.attention_failure, self_check.experts_failure):
        check.cache_clear()


def attend() -> tuple[torch.Tensor, torch.Tensor]:
    """A decode by whatever serves, and the written-out product."""
    torch.manual_seed(0)
    keys, values = (Pages(torch.randn(3, 4, 2, 8, device=DEVICE)) for _ in range(2))
    q, table = torch.randn(1, 4, 8, device=DEVICE), torch.tensor([[2, 0]], device=DEVICE)
    found = decode_attention(q, keys, values, torch.tensor([6], device=DEVICE), table, 0.5)
    return found, paged_attention(q, keys, values, [0, 1], [6], table, 0.5)


def feed() -> tuple[torch.Tensor, torch.Tensor]:
    """Experts by whatever serves, and the loop."""
    torch.manual_seed(0)
    parts = [torch.randn(shape, device=DEVICE) / 4 for shape in ((3, 16), (4, 16, 16), (4, 16, 8))]
    chosen = torch.tensor([[0, 1], [2, 3], [1, 3]], device=DEVICE), torch.ones(3, 2, device=DEVICE)
    arguments = parts[0], *chosen, parts[1], parts[2]
    return experts(*arguments, F.silu), looped_experts(*arguments, F.silu)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float32, torch.float16],
    ids=str,
)
def test_right_programs_serve(dtype):
    assert not self_check.attention_failure(DEVICE, dtype) and not self_check.experts_failure(DEVICE, dtype)
    assert notices(torch.device("cuda"), dtype) == () or DEVICE.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "ragged"])
def test_wrong_attention_is_left_to_torch_and_said_once(monkeypatch, caplog, name):
    own = getattr(self_check, name)
    monkeypatch.setattr(self_check, name, lambda *args: own(*args) * 1.01)  # one part in a hundred
    monkeypatch.setattr(gpu_kernels, "decode", lambda *_: pytest.fail("a wrong kernel serves"))
    for _ in range(2):
        torch.testing.assert_close(*attend())
    failure = self_check.attention_failure(DEVICE, F32)
    assert failure.startswith(f"the Triton programs of attention in float32 on {DEVICE} are off by 0.0")
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == f"torch computes instead of a GPU kernel, more slowly: {failure}"
    assert not self_check.experts_failure(DEVICE, F32)  # what is right goes on


def test_wrong_experts_are_left_to_torch(monkeypatch):
    own = self_check.experts
    monkeypatch.setattr(self_check, "experts", lambda *args: own(*args).roll(1, 0))
    monkeypatch.setattr(gpu_kernels, "experts", lambda *_: pytest.fail("a wrong kernel serves"))
    torch.testing.assert_close(*feed())
    assert "of experts in float32" in self_check.experts_failure(DEVICE, F32)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no such instruction\nat line 7"), "do not run: no such instruction"),
        (KeyError(), "run: KeyError"),
    ],
)
def test_programs_that_do_not_run_are_left_to_torch(monkeypatch, error, reason):
    def fails(*_):
        raise error

    monkeypatch.setattr(self_check, "decode", fails)
    monkeypatch.setattr(gpu_kernels, "decode", lambda *_: pytest.fail("a kernel that does not compile serves"))
    torch.testing.assert_close(*attend())
    assert self_check.attention_failure(DEVICE, F32).endswith(reason)


@pytest.mark.slow
def test_no_number_is_no_result(monkeypatch):
    own = self_check.ragged
    monkeypatch.setattr(self_check, "ragged", lambda *args: own(*args).index_fill(0, torch.tensor(3), torch.nan))
    assert "off by inf" in self_check.attention_failure(DEVICE, F32)


def test_the_user_is_told(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "FAILURES", (lambda *_: "attention is wrong", lambda *_: ""))
    monkeypatch.setattr(gpu_kernels, "reason", lambda: "")
    cuda = torch.device("cuda")
    assert notices(cuda, F32) == ("torch computes instead of the GPU kernels, more slowly: attention is wrong",)
    monkeypatch.setattr(gpu_kernels, "reason", lambda: "triton is not installed")
    assert notices(cuda, F32) == ("torch computes instead of the GPU kernels, more slowly: triton is not installed",)

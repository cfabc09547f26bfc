"""Mapped tensors do what torch's do: written, viewed, copied, saved, shared, moved; and their memory goes with them."""

import copy
import gc
import io
import re
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modelwright.ops import host_memory

LARGE = (3, host_memory.LARGE)
ROLLUP = Path("/proc/self/smaps_rollup")
mapped_only = pytest.mark.skipif(not host_memory.ON_REQUEST, reason="needs Linux' huge pages")


def is_mapped(tensor):
    return not tensor.untyped_storage().resizable()


def resident(kind="Rss"):
    return int(re.search(rf"^{kind}:\s+(\d+)", ROLLUP.read_text(), re.M)[1]) * 1024


@given(
    shape=st.lists(st.integers(0, 600), max_size=4).filter(lambda shape: prod(shape) < 1 << 22),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8]),
)
def test_shape_and_type_are_those_asked_for(shape, dtype):
    for make in (host_memory.empty, host_memory.zeros):
        tensor = make(shape, dtype)
        assert (tensor.shape, tensor.dtype, tensor.device.type) == (torch.Size(shape), dtype, "cpu")
        assert tensor.is_contiguous()
        assert is_mapped(tensor) == (host_memory.ON_REQUEST and tensor.nbytes >= host_memory.LARGE)
    assert not tensor.any()  # the zeros


def test_the_rest_is_left_to_torch(monkeypatch):
    assert host_memory.empty(LARGE, torch.float32, "meta").device.type == "meta"
    assert not is_mapped(host_memory.zeros((host_memory.LARGE - 1,), torch.int8))
    with pytest.raises(RuntimeError, match="memory"):
        host_memory.empty((1 << 60,), torch.int8)
    monkeypatch.setattr(host_memory, "ON_REQUEST", False)  # as on other systems
    tensor = host_memory.zeros(LARGE, torch.int8)
    assert not is_mapped(tensor)
    assert not tensor.any()


@pytest.fixture
def weight():
    return host_memory.empty((512, 1024), torch.float32).copy_(torch.arange(1 << 19).view(512, 1024) % 251)


def test_it_is_saved_read_and_copied_like_any_tensor(weight, tmp_path):
    expected, file = weight.clone(), io.BytesIO()
    parameter = torch.nn.Parameter(weight)
    torch.save(parameter, file)
    file.seek(0)
    save_file({"weight": weight}, tmp_path / "weight.safetensors")
    copied = copy.deepcopy(parameter)
    read = [torch.load(file), load_file(tmp_path / "weight.safetensors")["weight"]]
    weight.zero_()
    assert not parameter.any()  # which is the same memory
    for tensor in (*read, copied):
        assert torch.equal(tensor, expected)


def test_it_is_trained_and_moved_like_any_parameter(weight):
    layer = torch.nn.Linear(1024, 512, bias=False)
    layer.weight = torch.nn.Parameter(weight)
    before = weight.clone()
    layer(torch.ones(1, 1024)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.5).step()
    assert torch.equal(weight, before - 0.5)
    assert layer.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert layer.to("meta").weight.device.type == "meta"


def test_it_can_be_shared_with_other_processes(weight):
    expected = weight.clone()
    assert weight.share_memory_().is_shared()
    assert torch.equal(weight, expected)


@pytest.mark.slow
@mapped_only
def test_memory_is_taken_as_it_is_written_and_given_back_with_the_last_view():
    nbytes = 256 << 20
    before = resident()
    tensor = host_memory.zeros((nbytes,), torch.int8)
    assert resident() - before < nbytes // 8
    tensor.fill_(1)
    row = tensor.view(256, -1)[7]
    del tensor
    gc.collect()
    assert resident() - before > nbytes * 7 // 8
    assert int(row.sum(dtype=torch.int64)) == 1 << 20
    del row
    gc.collect()
    assert resident() - before < nbytes // 8


@mapped_only
def test_huge_pages_are_had_where_the_system_gives_them_on_request():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.is_file() or "[never]" in enabled.read_text():
        pytest.skip("this system gives no huge pages")
    before = resident("AnonHugePages")
    tensor = host_memory.empty((64 << 20,), torch.int8).fill_(1)
    assert resident("AnonHugePages") - before >= tensor.nbytes - (2 << 20)  # which need not begin with a page

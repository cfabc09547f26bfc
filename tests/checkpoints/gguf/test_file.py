"""`open_gguf`: what the gguf package's own reader and decoder say, bit by bit; damage anywhere is one sentence."""

import struct

import gguf
import numpy as np
import pytest
import torch

from modelwright.checkpoints.gguf import file as module
from modelwright.checkpoints.gguf.file import BLOCKS, open_gguf
from modelwright.checkpoints.gguf.folder import folder_of
from modelwright.errors import CheckpointError
from tests.checkpoints.gguf.files import llama_metadata, llama_tensors, write_file


@pytest.fixture
def path(tmp_path):
    return write_file(tmp_path / "model.gguf", llama_metadata(), llama_tensors("F16"))


def test_metadata_is_what_the_package_reads(tmp_path):
    values = {
        "a.text": "Grüße 漢", "a.true": True, "a.integer": 7, "a.float": 0.25, "a.empty": "",
        "a.texts": ["x", "", "ü"], "a.floats": [0.5, -1.0], "a.integers": [1, -2], "a.truths": [True, False],
    }  # fmt: skip
    path = write_file(tmp_path / "model.gguf", values, {})
    read = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    own = dict(open_gguf(path).metadata)
    assert own == {key: value for key, value in read.items() if not key.startswith("GGUF.")}
    assert own["a.texts"] == ["x", "", "ü"] and own["a.truths"] == [True, False]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *BLOCKS])
def test_numbers_are_those_that_the_package_decodes(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 512)  # several threads' worth
    path = write_file(tmp_path / "model.gguf", llama_metadata(), llama_tensors(kind))
    theirs = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    file = open_gguf(path)
    assert file.tensors.keys() == theirs.keys()
    for name, tensor in file.tensors.items():
        read = tensor.read()
        assert read.shape == tensor.shape and read.dtype == tensor.dtype
        assert torch.equal(read.float(), torch.from_numpy(np.array(theirs[name], np.float32)).reshape(read.shape))
        assert torch.equal(tensor.read(1), read[1])


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        folder_of(path)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general.architecture": "gemma"},
            "FILE has the architecture 'gemma'; deepseek2 and llama are read from GGUF",
        ),
        ({"split.count": 3}, "FILE is one of 3 parts; join them with llama.cpp's gguf-split --merge"),
        ({"general.type": "adapter"}, "FILE holds no model: its general.type is 'adapter'"),
        ({"llama.block_count": None}, "FILE has no llama.block_count, which its config needs"),
        ({"llama.block_count": "two"}, "FILE: llama.block_count must be a whole number, not 'two'"),
        (
            {"llama.attention.head_count_kv": [1, 2]},
            "FILE: llama.attention.head_count_kv must be a whole number, not [1, 2]",
        ),
        (
            {"llama.expert_count": 8},
            "FILE has llama.expert_count 8: a mixture of experts, as in a Mixtral, is not read from GGUF",
        ),
        (
            {"llama.attention.sliding_window": 32},
            "FILE has llama.attention.sliding_window 32: a window that slides is not read from GGUF",
        ),
        (
            {"llama.rope.scaling.type": "longrope"},
            "FILE: rope.scaling.type 'longrope' is not read here; none, linear and yarn are",
        ),
        (
            {"llama.rope.dimension_count": 32, "llama.attention.key_length": 64},
            "FILE: llama.rope.dimension_count must be the width of a head, 64",
        ),
        ({"tokenizer.ggml.model": "t5"}, "FILE: a tokenizer of the kind 't5' is not read here; gpt2 and llama are"),
        ({"tokenizer.ggml.model": None}, "FILE: a tokenizer of the kind None is not read here; gpt2 and llama are"),
        ({"tokenizer.ggml.tokens": None}, "FILE: tokenizer.ggml.tokens must be a list of str"),
        ({"tokenizer.ggml.scores": [0.0]}, "FILE: tokenizer.ggml.scores has 1 items, not one for each token"),
        ({"tokenizer.ggml.eos_token_id": 999}, "FILE: tokenizer.ggml.eos_token_id is 999, of 265 tokens"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tmp_path, changes, message):
    assert refused(write_file(tmp_path / "model.gguf", llama_metadata(**changes), llama_tensors("F32"))) == message


def test_unknown_ways_to_split_are_refused(tmp_path):
    metadata = llama_metadata(**{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "poro-chat"})
    path = write_file(tmp_path / "model.gguf", metadata, llama_tensors("F32"))
    assert refused(path).startswith("FILE splits text in the way 'poro-chat', which is not known here; known are gpt-2")


def test_a_type_that_is_not_read_is_named(tmp_path):
    tensors = llama_tensors("F32") | {"blk.0.attn_q.weight": (np.zeros((256, 84), np.uint8), "Q2_K")}
    message = refused(write_file(tmp_path / "model.gguf", llama_metadata(), tensors))
    assert message.startswith("FILE: blk.0.attn_q.weight is of type Q2_K; the types read here are F32, F16, BF16, Q8_0")


def test_no_file_no_package(tmp_path, path, monkeypatch):
    assert refused(tmp_path / "none.gguf") == "FILE cannot be read: No such file or directory"
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert refused(path) == 'GGUF files need the gguf package: pip install "modelwright[gguf]"'


def test_every_length_that_is_too_short_is_refused(tmp_path, path):
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    header = whole.index(b"output_norm.weight") + 60
    for length in (*range(0, 400, 9), *range(400, header, 1997), len(whole) - 20_000, len(whole) - 1):
        cut.write_bytes(whole[:length])
        assert refused(cut).startswith("FILE "), length


@pytest.mark.parametrize(
    ("place", "kind", "value", "message"),
    [
        (0, "4s", b"GGML", "FILE does not begin as a GGUF file does"),
        (4, "<I", 1, "FILE has version 1; 2 and 3 are read"),
        (4, ">I", 3, "FILE is written for big-endian machines"),
        (8, "<Q", 1 << 60, "FILE is cut short or damaged"),
        (16, "<Q", 1 << 60, "FILE "),
        (24, "<Q", 1 << 62, "FILE is cut short or damaged: 4611686018427387904 bytes are to follow byte 32"),
    ],
)
def test_huge_or_wrong_numbers_in_the_header_cost_nothing(path, place, kind, value, message):
    data = bytearray(path.read_bytes())
    data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(data)
    assert refused(path).startswith(message)


def test_flipped_bytes_are_read_or_refused(tmp_path, path):
    """In a header of 9,000 bytes any one may be wrong: the file is read, or refused with an error of ours."""
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    header = whole.index(b"output_norm.weight") + 60
    damaged = tmp_path / "damaged.gguf"
    for _ in range(60):
        data = bytearray(whole)
        data[draw.integers(header)] ^= 1 << draw.integers(8)
        damaged.write_bytes(data)
        try:
            open_gguf(damaged)
            folder_of(damaged)
        except CheckpointError as error:
            assert "\n" not in str(error)

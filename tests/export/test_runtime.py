"""Generation without torch: the tokens of transformers' ``generate``, the ways to choose them, and what is refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.export import OnnxDecoder
from tests.llamas import left_padded

pytestmark = pytest.mark.slow  # the export that it runs takes more than a quick test may
IDS = np.random.default_rng(0).integers(3, 64, size=(3, 6))


@pytest.fixture(scope="module")
def decoder(llama):
    return OnnxDecoder(llama.folder, threads=1)


def generated(model, ids, new, mask=None, **how):
    mask = torch.ones(ids.shape, dtype=torch.long) if mask is None else mask
    how = {"do_sample": False, "eos_token_id": None, "max_new_tokens": new} | how
    return model.generate(torch.from_numpy(ids), attention_mask=mask, **how).numpy()


def test_greedy_rows_are_those_of_generate(llama, decoder):
    np.testing.assert_array_equal(decoder.generate(IDS, 20, eos_token_id=()), generated(llama.model, IDS, 20))


def test_left_padding_changes_no_row(llama, decoder):
    mask = left_padded(torch.from_numpy(IDS), [6, 2, 4])
    rows = decoder.generate(IDS, 12, attention_mask=mask.numpy(), eos_token_id=())
    np.testing.assert_array_equal(rows, generated(llama.model, IDS, 12, mask))
    for row, length in zip(rows, [6, 2, 4], strict=True):
        alone = decoder.generate(row[None, 6 - length : 6], 12, eos_token_id=())
        np.testing.assert_array_equal(alone[0, length:], row[6:])


@pytest.mark.parametrize("chunk", [1, 4, 6, 99])
def test_a_prompt_in_chunks_gives_the_same(decoder, chunk):
    whole = decoder.generate(IDS, 8, eos_token_id=())
    np.testing.assert_array_equal(decoder.generate(IDS, 8, eos_token_id=(), chunk=chunk), whole)


def test_rows_end_and_are_filled(llama, decoder):
    free = decoder.generate(IDS, 20, eos_token_id=())
    end = int(free[0, 9])
    rows = decoder.generate(IDS, 20, eos_token_id=end)
    expected = generated(llama.model, IDS, 20, eos_token_id=end, pad_token_id=end)
    np.testing.assert_array_equal(rows, expected)  # no pad token here: what ended a row fills it


def test_the_pad_token_fills_and_the_configs_end_is_the_default(llama, tmp_path):
    end = int(OnnxDecoder(llama.folder, threads=1).generate(IDS[:1], 8, eos_token_id=())[0, 8])
    folder = tmp_path / "copy"
    shutil.copytree(llama.folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 70], "pad_token_id": 0}))
    decoder = OnnxDecoder(folder, threads=1)
    assert (decoder.eos_token_ids, decoder.pad_token_id) == ((end, 70), 0)
    alone = decoder.generate(IDS[:1], 8)
    assert alone.shape[1] < 14 and alone[0, -1] == end
    rows = decoder.generate(IDS, 8)
    ended = np.cumsum(rows[:, 6:] == end, axis=1)
    assert (rows[:, 6:][(ended > 0) & (np.roll(ended, 1, axis=1) > 0)][1:] == 0).all() or rows.shape[1] == alone.shape[
        1
    ]


def test_pad_tokens_are_padding_where_no_mask_is_given(llama, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(llama.folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 0}))
    decoder = OnnxDecoder(folder, threads=1)
    padded = np.concatenate([np.zeros((1, 3), np.int64), IDS[:1]], axis=1)
    rows = decoder.generate(padded, 6, eos_token_id=())
    np.testing.assert_array_equal(rows[:, 3:], decoder.generate(IDS[:1], 6, eos_token_id=()))


def test_a_seed_repeats_and_another_one_does_not(decoder):
    how = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "eos_token_id": ()}
    first = decoder.generate(IDS, 15, seed=1, **how)
    np.testing.assert_array_equal(first, decoder.generate(IDS, 15, seed=1, **how))
    assert (first != decoder.generate(IDS, 15, seed=2, **how)).any()


def test_one_best_token_is_the_greedy_one(decoder):
    greedy = decoder.generate(IDS, 8, eos_token_id=())
    by_zero, by_minus_one = (decoder.generate(IDS, 8, temperature=1.5, top_k=k, seed=3) for k in (0, -1))
    np.testing.assert_array_equal(by_zero, by_minus_one)
    np.testing.assert_array_equal(decoder.generate(IDS, 8, temperature=2.0, top_k=1, eos_token_id=()), greedy)
    np.testing.assert_array_equal(decoder.generate(IDS, 8, temperature=2.0, top_p=1e-9, eos_token_id=()), greedy)


def test_each_step_is_told(decoder):
    steps = []
    rows = decoder.generate(IDS, 5, eos_token_id=(), on_token=steps.append)
    np.testing.assert_array_equal(np.stack(steps, axis=1), rows[:, 6:])
    assert rows.dtype == np.int64


def test_nothing_new(decoder):
    np.testing.assert_array_equal(decoder.generate(IDS, 0), IDS)


@pytest.mark.parametrize(
    ("ids", "how", "message"),
    [
        (IDS[0], {}, r"input_ids must be \[batch, tokens\], both at least 1, got \[6\]"),
        (IDS[:, :0], {}, r"input_ids must be \[batch, tokens\], both at least 1, got \[3, 0\]"),
        (IDS * 1.0, {}, "input_ids must be integers, got float64"),
        (IDS + 40, {}, r"input_ids must be at least 0 and below vocab_size \(64\), got \d+"),
        (-IDS, {}, r"input_ids must be at least 0 and below vocab_size \(64\), got -\d+"),
        (IDS, {"max_new_tokens": 60}, "6 tokens and 60 new ones need 65 positions, and the model has 64"),
        (IDS, {"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        (IDS, {"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        (IDS, {"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        (IDS, {"top_k": -2}, "top_k must be at least -1, got -2"),
        (IDS, {"top_p": -0.1}, "top_p must be from 0 to 1, got -0.1"),
        (IDS, {"chunk": 0}, "chunk must be at least 1, got 0"),
        (IDS, {"seed": -1}, "seed must be at least 0, got -1"),
        (IDS, {"attention_mask": IDS[:, :2]}, r"attention_mask must be \[3, 6\] as input_ids, got \[3, 2\]"),
        (IDS, {"attention_mask": IDS}, r"attention_mask must hold 0 \(padding\) and 1 only"),
        (IDS, {"attention_mask": IDS * 0}, "padding must stand on the left: the last column"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(decoder, ids, how, message):
    with pytest.raises(RequestError, match=message):
        decoder.generate(ids, **{"max_new_tokens": 4} | how)


def test_the_last_position_can_be_reached(decoder):
    assert decoder.generate(IDS, 59, eos_token_id=()).shape == (3, 65)


def test_folders_that_are_no_export(llama, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no modelwright_onnx\.json: it is no folder that `modelwright exp"):
        OnnxDecoder(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(llama.folder, folder)
    manifest = json.loads((folder / "modelwright_onnx.json").read_text("utf-8"))
    (folder / "modelwright_onnx.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(CheckpointError, match="has another format than 1, the one this version reads"):
        OnnxDecoder(folder)
    (folder / "modelwright_onnx.json").write_text(json.dumps(manifest | {"wings": 2}))
    with pytest.raises(CheckpointError, match=r"does not fit format 1: .*wings"):
        OnnxDecoder(folder)
    (folder / "modelwright_onnx.json").write_text(json.dumps(manifest))
    (folder / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"onnxruntime cannot open .*decoder\.onnx"):
        OnnxDecoder(folder)
    (folder / "decoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"has no decoder\.onnx"):
        OnnxDecoder(folder)


def test_threads_and_a_missing_runtime(llama, monkeypatch):
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        OnnxDecoder(llama.folder, threads=0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'onnxruntime is not installed: pip install "modelwright\[onnx\]"'):
        OnnxDecoder(llama.folder)


def test_neither_torch_nor_transformers_is_imported(llama, decoder):
    """In a process of its own, where importing either would fail."""
    program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from modelwright.export import OnnxDecoder
rows = OnnxDecoder({str(llama.folder)!r}, threads=1).generate({IDS.tolist()}, 5, eos_token_id=())
print(rows.tolist())
assert not [name for name in sys.modules if name.startswith(("torch.", "transformers."))]
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == decoder.generate(IDS, 5, eos_token_id=()).tolist()

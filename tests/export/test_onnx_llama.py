"""Llama's graphs against the model's own forward pass: both dialects, every rotation, any lengths, left padding."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.errors import ConfigError
from modelwright.export import export_onnx
from modelwright.families.llama.model import LlamaForSequenceClassification, LlamaModel
from tests.export.graphs import largest_delta, lengths, open_graph
from tests.llamas import EXPERTS, HUGGING_FACE, ROPES, tiny_llama

MINDFORMERS = {
    "qkv_concat": True,
    "qkv_has_bias": True,
    "n_kv_heads": 4,
    "extend_method": "DYNAMIC_NTK",
    "is_dynamic": True,
    "seq_length": 8,
    "rmsnorm_compute_2d": True,
    "fused_rms_norm": False,
    "use_flash_attention": True,
    "pretraining_tp": 2,
    "softmax_compute_type": "float16",
    "pad_token_id": None,
}
SWITCHES = {
    "plain": {"use_rope_slice": True, "attn_proj_has_bias": True, "n_kv_heads": 1, "residual_dtype": "float32"},
    "wide heads": {"head_dim": 12},
    "NTK": {"extend_method": "NTK", "scaling_factor": 2.0, "tie_word_embeddings": True},
    "compressed mask": {"use_attn_mask_compression": True},
    "return_hidden_states": {"return_hidden_states": True},
}


@pytest.fixture(scope="module")
def mindformers(exported):
    return exported(tiny_llama(num_layers=1, **MINDFORMERS))


@settings(max_examples=20)
@given(shape=lengths, padded=st.booleans())
def test_any_lengths_with_and_without_left_padding(llama, shape, padded):
    assert largest_delta(llama.model, llama.open(), padded=padded, **shape) < 1e-4


@pytest.mark.slow
@settings(max_examples=20)
@given(shape=lengths)
def test_mindformers_switches_and_a_rotation_that_grows_at_run_time(mindformers, shape):
    assert largest_delta(mindformers.model, mindformers.open(), **shape) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_more_of_mindformers_switches(exported, name):
    made = exported(tiny_llama(num_layers=1, **SWITCHES[name]))
    for shape in ((1, 1, 0), (3, 4, 0), (2, 1, 9)):
        assert largest_delta(made.model, made.open(), *shape, seed=0) < 1e-4
    assert ("attention_mask" in [tensor.name for tensor in made.open().get_inputs()]) != (name == "compressed mask")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROPES)
def test_every_rope_of_hugging_face(exported, name):
    model = tiny_llama(base=HUGGING_FACE, num_hidden_layers=1, rope_scaling=ROPES[name], max_position_embeddings=16)
    made = exported(model)
    for shape in ((1, 1, 0), (2, 30, 0), (2, 3, 25)):
        assert largest_delta(model, made.open(), *shape, seed=0) < 1e-4


@pytest.mark.slow
def test_experts_are_routed_at_run_time(exported):
    made = exported(tiny_llama(num_layers=1, moe_config=EXPERTS))
    for seed, shape in enumerate([(1, 1, 0), (4, 7, 0), (2, 1, 9), (1, 12, 3)]):
        assert largest_delta(made.model, made.open(), *shape, seed=seed) < 1e-4


def test_the_graph_names_its_inputs_outputs_and_axes(llama):
    graph = onnx.load(llama.folder / "decoder.onnx", load_external_data=False).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    cached = {f"past.{n}.{part}": ["batch", 2, "past", 8] for n in range(2) for part in ("key", "value")}
    after = {f"present.{n}.{part}": ["batch", 2, "past + sequence", 8] for n in range(2) for part in ("key", "value")}
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "past + sequence"],
        **cached,
        "logits_to_keep": [1],
        "logits": ["batch", "sequence", 64],
        **after,
    }


def test_logits_of_the_last_tokens_only(llama):
    session = llama.open()
    feeds = {"input_ids": np.arange(10).reshape(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
    feeds |= {f"past.{n}.{part}": np.zeros((2, 2, 0, 8), np.float32) for n in range(2) for part in ("key", "value")}
    [every] = session.run(["logits"], feeds | {"logits_to_keep": np.array([0])})
    for keep in (0, 1, 3, 9):
        [kept] = session.run(["logits"], feeds | {"logits_to_keep": np.array([keep])})
        np.testing.assert_allclose(kept, every[:, -keep:] if keep < 5 else every, atol=1e-5)


def test_the_report_and_the_folder(llama):
    report, folder = llama.report, llama.folder
    assert (report.family, report.dtype, report.opset, report.folder) == ("llama", "float32", 20, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "decoder.onnx", "decoder.onnx.data", "generation_config.json", "modelwright_onnx.json",
    ]  # fmt: skip
    [graph] = report.graphs
    assert graph.weight_bytes == (folder / "decoder.onnx.data").stat().st_size > 10_000
    manifest = json.loads((folder / "modelwright_onnx.json").read_text("utf-8"))
    assert manifest["cache_parts"] == [{"name": name, "heads": 2, "width": 8} for name in ("key", "value")]
    assert (manifest["max_positions"], manifest["vocab_size"], manifest["dtype"]) == (64, 64, "float32")
    assert [delta.output for delta in report.verification.deltas][:2] == ["logits", "present.0.key"]
    assert report.verification.largest < 1e-4 and report.verification.greedy_tokens == 32


@pytest.mark.slow
def test_a_second_export_has_the_same_bytes(llama, tmp_path):
    export_onnx(llama.model, tmp_path / "again", external_above=1000, draws=1)
    for path in llama.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_a_half_precision_export(exported):
    model = tiny_llama(num_layers=1, pad_token_id=None)
    made = exported(model, dtype="float16")
    assert model.dtype == torch.float32  # the model handed over stays as it is
    half = tiny_llama(num_layers=1, pad_token_id=None, param_init_type="float16", compute_dtype="float16")
    half.load_state_dict(model.state_dict())
    assert largest_delta(half, made.open(), 2, 3, 4, seed=0) < 2e-2
    assert {delta.output for delta in made.report.verification.deltas} >= {"logits"}


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_a_next_token_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match=f"{kind.__name__} is not exported: a graph with a cache serves .*LlamaForC"):
        export_onnx(tiny_llama(kind), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_packed_documents_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="use_eod_attn_mask_compression=True packs documents into one row"):
        export_onnx(tiny_llama(use_eod_attn_mask_compression=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype must be one of float32, float16, which onnxruntime computes on a CPU; got bfl"),
        ({"opset": 17}, "opset must be from 18 to 23, got 17"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(tmp_path, how, message):
    with pytest.raises(ConfigError, match=message):
        export_onnx(tiny_llama(), tmp_path / "out", **how)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(exported, opset):
    made = exported(tiny_llama(num_layers=1, pad_token_id=None), opset=opset)
    assert largest_delta(made.model, open_graph(made.folder), 2, 3, 4, seed=0) < 1e-4
    assert onnx.load(made.folder / "decoder.onnx").opset_import[0].version == opset

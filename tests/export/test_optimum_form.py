"""Graphs in optimum's form: its names and inputs, the numbers when fed as optimum feeds, and what has no such form."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from transformers import DynamicCache

from modelwright.errors import CheckpointError, ConfigError
from modelwright.export import OnnxDecoder, export_onnx
from modelwright.export.manifest import FILE
from tests.export.conftest import Exported
from tests.export.graphs import tiny_imagegpt
from tests.fakes import tiny_v2, tiny_vl2
from tests.llamas import EXPERTS, HUGGING_FACE, left_padded, tiny_llama

LAYERS, IDS = 2, np.random.default_rng(0).integers(3, 64, size=(3, 6))


@pytest.fixture(scope="module")
def optimum(llama, tmp_path_factory):
    """A Llama with grouped heads whose rotation grows with the longest position, in place of another's graph of ours.

    Its weights lie beside the graph.
    """
    rope = {"rope_type": "dynamic", "factor": 2.0}
    model = tiny_llama(base=HUGGING_FACE, rope_scaling=rope, max_position_embeddings=16)
    folder = tmp_path_factory.mktemp("optimum") / "out"
    shutil.copytree(llama.folder, folder)
    return Exported(model, folder, export_onnx(model, folder, names="optimum", external_above=1000))


@pytest.fixture(scope="module")
def session(optimum):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(optimum.folder / "model.onnx"), options)


def nothing(batch):
    """The past of a first pass, as optimum's loader makes it of the config."""
    empty = np.zeros((batch, 2, 0, 32 // 4), np.float32)
    return {f"past_key_values.{n}.{part}": empty for n in range(LAYERS) for part in ("key", "value")}


def fed(session, ids, mask, positions, past):
    """One pass: logits, and the past of the next."""
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    logits, *present = session.run(None, feeds | past)
    return logits, dict(zip(past, present, strict=True))


def test_the_graph_has_optimums_names(optimum):
    graph = onnx.load(optimum.folder / "model.onnx", load_external_data=False).graph
    shapes = [
        {value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in side}
        for side in (graph.input, graph.output)
    ]
    batch, new, past = "batch_size", "sequence_length", "past_sequence_length"
    parts = [f"{n}.{part}" for n in range(LAYERS) for part in ("key", "value")]
    assert shapes == [
        {
            "input_ids": [batch, new],
            "attention_mask": [batch, f"{past} + {new}"],
            "position_ids": [batch, new],
            **{f"past_key_values.{part}": [batch, 2, past, 8] for part in parts},
        },
        {
            "logits": [batch, new, 64],
            **{f"present.{part}": [batch, 2, f"{past} + {new}", 8] for part in parts},
        },
    ]
    assert sorted(path.name for path in optimum.folder.iterdir()) == [
        "config.json", "generation_config.json", "model.onnx", "model.onnx_data", "modelwright_onnx.json",
    ]  # fmt: skip
    assert optimum.report.graphs[0].weight_bytes == (optimum.folder / "model.onnx_data").stat().st_size > 10_000


def test_padded_rows_at_the_positions_that_generate_counts(optimum, session):
    mask = left_padded(torch.from_numpy(IDS), [6, 2, 4])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    cache, past, first = DynamicCache(), nothing(3), 0
    for last in (4, 5, 6):
        part = slice(first, last)
        with torch.no_grad():
            wanted = optimum.model(
                torch.from_numpy(IDS[:, part]),
                attention_mask=mask[:, :last],
                position_ids=positions[:, part],
                past_key_values=cache,
            ).logits
        found, past = fed(session, IDS[:, part], mask[:, :last].numpy(), positions[:, part].numpy(), past)
        real = mask[:, part].bool().numpy()
        np.testing.assert_allclose(found[real], wanted.numpy()[real], atol=1e-4)
        first = last


def test_positions_act(optimum, session):
    ones, own = np.ones_like(IDS), np.broadcast_to(np.arange(6), IDS.shape)
    for positions in (own, own * 3, own + 40):  # the last are beyond what the rotation was trained for
        with torch.no_grad():
            wanted = optimum.model(torch.from_numpy(IDS), position_ids=torch.tensor(positions)).logits.numpy()
        np.testing.assert_allclose(fed(session, IDS, ones, positions, nothing(3))[0], wanted, atol=1e-4)
    apart = fed(session, IDS, ones, own * 3, nothing(3))[0] - fed(session, IDS, ones, own, nothing(3))[0]
    assert np.abs(apart).max() > 0.1


@pytest.mark.parametrize("chunk", [None, 4])
def test_our_reader_generates_from_it(optimum, chunk):
    found = OnnxDecoder(optimum.folder, threads=1).generate(IDS, 8, eos_token_id=(), chunk=chunk)
    how = {"attention_mask": torch.ones(IDS.shape), "do_sample": False, "eos_token_id": None, "max_new_tokens": 8}
    np.testing.assert_array_equal(found, optimum.model.generate(torch.from_numpy(IDS), **how).numpy())


def test_its_config_is_transformers(optimum):
    read = transformers.AutoConfig.from_pretrained(optimum.folder)
    assert type(read) is transformers.LlamaConfig and read.architectures == ["LlamaForCausalLM"]
    assert (read.hidden_size, read.num_attention_heads, read.num_key_value_heads) == (32, 4, 2)
    written = json.loads((optimum.folder / "config.json").read_text())
    assert "moe_config" not in written and written["rope_scaling"]["rope_type"] == "dynamic"


NO_FORM = {"deepseek_v2": tiny_v2, "deepseek_vl_v2": tiny_vl2, "imagegpt": tiny_imagegpt}
SHARED = EXPERTS | {"shared_expert_num": 1}
NOT_SAID = {
    r"head_dim \(12\) must be hidden_size // num_attention_heads \(8\) to its loader": {"head_dim": 12},
    "use_attn_mask_compression=True leaves out the attention_mask": {"use_attn_mask_compression": True},
    r"num_key_value_heads \(2\) must be num_attention_heads \(4\) to its loader of Mixtrals": {"moe_config": EXPERTS},
    "no model type of transformers' says these experts: .*shared": {"moe_config": SHARED},
}


@pytest.mark.parametrize("family", NO_FORM)
def test_a_family_without_this_form_is_refused(tmp_path, family):
    sentence = f"names must be modelwright for {family}, got optimum, whose ORTModelForCausalLM runs one graph from tok"
    with pytest.raises(ConfigError, match=sentence):
        export_onnx(NO_FORM[family](), tmp_path / "out", names="optimum")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sentence", NOT_SAID)
def test_a_llama_that_the_loader_would_misread_is_refused(tmp_path, sentence):
    model = tiny_llama(**NOT_SAID[sentence])
    model.save_pretrained(tmp_path / "source")
    for source in (model, tmp_path / "source"):
        with pytest.raises(ConfigError, match=f"names must be modelwright here, got optimum: {sentence}"):
            export_onnx(source, tmp_path / "out", names="optimum")
    assert not (tmp_path / "out").exists()


def test_a_rotation_without_a_name_in_hugging_face_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='extend_method "DYNAMIC_NTK" has no rope type in Hugging Face'):
        export_onnx(tiny_llama(extend_method="DYNAMIC_NTK", is_dynamic=True), tmp_path / "out", names="optimum")


def test_other_names_are_refused(optimum, tmp_path):
    with pytest.raises(ConfigError, match="names must be one of modelwright, optimum; got 'onnx'"):
        export_onnx(optimum.model, tmp_path / "out", names="onnx")
    manifest = json.loads((optimum.folder / FILE).read_text()) | {"names": "other"}
    (tmp_path / FILE).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="names must be one of modelwright, optimum; got 'other'"):
        OnnxDecoder(tmp_path)

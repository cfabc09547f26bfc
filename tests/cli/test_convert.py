"""``modelwright convert`` on tiny checkpoints: what it writes, what it says, and how it refuses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.conversion_source import Dropped
from modelwright.checkpoints.convert import Report
from modelwright.cli.convert import summary
from modelwright.families.read import read_config
from tests.fakes import golden, write_mindformers

NAME = "mindformers/mf_qkv_concat"


@pytest.fixture
def source(tmp_path):
    config, weights, _, _ = golden(NAME)
    return write_mindformers(tmp_path / "source", config, weights, shards=2)


def test_a_mindformers_folder_becomes_a_hugging_face_one(run, source, tmp_path):
    ended = run("convert", source, tmp_path / "hf")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{tmp_path / 'hf'}: 21 tensors, 115.3 kB in 1 file\n"
    assert "model.layers.0.self_attn.k_proj.weight" in load_file(tmp_path / "hf" / "model.safetensors")


def test_there_and_back_with_every_option(run, source, tmp_path):
    assert run("convert", source, tmp_path / "hf", "--max-shard-size", "50KB", "--dtype", "bfloat16").code == 0
    ended = run(
        "convert", tmp_path / "hf", tmp_path / "mf", "--to", "mindformers", "--no-qkv-concat",
        "--num-key-value-heads", "1", "--max-shard-size", "1000000",
    )  # fmt: skip
    assert ended.code == 0 and "in 1 file" in ended.out
    config = read_config(tmp_path / "mf")
    assert (config.qkv_concat, config.num_key_value_heads, config.param_init_type) == (False, 1, "bfloat16")
    tensor = load_file(tmp_path / "mf" / "model.safetensors")["model.layers.0.attention.wk.weight"]
    assert tensor.shape == (8, 32) and tensor.dtype == torch.bfloat16


def test_hugging_face_sources_keep_their_layout(run, v2, tmp_path):
    ended = run("convert", v2, tmp_path / "again", "--max-shard-size", "30KB")
    assert ended.code == 0 and " files" in ended.out
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(v2 / "model.safetensors"))
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (v2 / "tokenizer.json").read_bytes()


def test_what_was_dropped_is_said_once_for_all_layers(run, source, tmp_path):
    name = "model.layers.{}.attention.infer_attention.paged_attention_mgr.value_cache"
    save_file({name.format(n): torch.zeros(2) for n in range(2)}, source / "caches.safetensors")
    for file in source.glob("model*.json"):
        file.unlink()
    lines = run("convert", source, tmp_path / "hf").out.splitlines()
    assert lines[1:] == [f"dropped {name.format('N')} (2 tensors): a cache of the run"]


def test_the_summary():
    report = Report(3, 2_500_000_000, 2, (Dropped("global_step", "state of the training run"),))
    assert summary("out", report) == (
        "out: 3 tensors, 2.5 GB in 2 files\ndropped global_step: state of the training run"
    )
    assert summary("out", Report(1, 12, 1, ())) == "out: 1 tensors, 12 bytes in 1 file"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "ggml"), "--to must be one of hf, mindformers, gguf; got 'ggml'"),
        (("--dtype", "int4"), "--dtype must be one of float32, bfloat16, float16, q8_0; got 'int4'"),
        (("--max-shard-size", "0"), "max_shard_size must be bytes or a number with KB, MB or GB, not 0"),
        (
            ("--num-key-value-heads", "4"),
            "num_key_value_heads (2) must be divisible by the new num_key_value_heads (4)",
        ),
    ],
)
def test_a_refusal_is_one_sentence(run, source, tmp_path, options, message):
    ended = run("convert", source, tmp_path / "out", *options)
    assert (ended.code, ended.out, ended.err) == (2, "", f"modelwright: {message}\n")
    assert not (tmp_path / "out").exists()


def test_missing_arguments_and_sources(run, source, tmp_path):
    assert run("convert").code == run("convert", source).code == 2
    ended = run("convert", tmp_path / "no" / "such", tmp_path / "out")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "is not a folder" in ended.err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "here").write_text("")
    assert run("convert", source, tmp_path / "out").err.endswith("is not empty; name a new folder\n")

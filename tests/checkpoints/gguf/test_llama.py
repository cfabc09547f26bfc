"""A Llama from GGUF, against transformers' own GGUF loader; and the way back."""

import numpy as np
import pytest
import torch
import transformers

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.quantize import quantize
from modelwright.checkpoints.shards import read_tensors
from modelwright.checkpoints.source import find_folder
from modelwright.checkpoints.weights import weights_in
from modelwright.cli.plan import find_config
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.gguf import turn, turn_back
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.serving.load import load
from tests.checkpoints.gguf.files import llama_metadata, llama_tensors, write_file
from tests.checkpoints.gguf.tokenizers import write_byte_level

IDS = torch.randint(3, 265, (2, 24), generator=torch.manual_seed(1))
TINY = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tensors_of(path) -> dict[str, torch.Tensor]:
    return dict(read_tensors(weights_in(find_folder(path, {}))))


def theirs(path):
    return transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
@torch.no_grad()
def test_logits_are_transformers(tmp_path, kind):
    tensors = llama_tensors(kind, **{"token_embd.weight": "Q6_K" if kind.endswith("_K") else kind})
    path = write_file(tmp_path / "model.gguf", llama_metadata(), tensors)
    wanted = theirs(path)
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    inside = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype="float32")
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(inside.state_dict()[name], tensor), name
    logits = wanted(IDS).logits
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))


def test_the_type_by_default_is_that_of_the_matrices_and_bfloat16_for_blocks(tmp_path):
    for kind, wanted in {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q4_1": "bfloat16"}.items():
        path = write_file(tmp_path / f"{kind}.gguf", llama_metadata(), llama_tensors(kind))
        exact, rounded = tensors_of(path), load(path).model
        assert rounded.dtype == getattr(torch, wanted)
        name = "model.layers.1.mlp.up_proj.weight"
        assert torch.equal(rounded.state_dict()[name], exact[name].to(rounded.dtype))


def test_a_name_in_capitals_is_that_of_a_gguf_file_too(tmp_path):
    path = write_file(tmp_path / "MODEL.GGUF", llama_metadata(), llama_tensors("F16"))
    wanted = tensors_of(path)
    convert(path, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "BACK.Gguf")
    assert (tmp_path / "BACK.Gguf").is_file()
    found = tensors_of(tmp_path / "BACK.Gguf")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert find_config(str(path)).vocab_size == 265


def test_a_converted_file_is_the_folder_that_the_file_was_read_as(tmp_path):
    path = write_file(tmp_path / "model.gguf", llama_metadata(), llama_tensors("Q4_0"))
    report = convert(path, tmp_path / "hf")
    assert report.dropped == () and report.tensors == 20
    exact, stored = tensors_of(path), tensors_of(tmp_path / "hf")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.bfloat16", "torch.float32"}
    assert all(torch.equal(stored[name], exact[name].to(stored[name].dtype)) for name in exact)
    assert convert(path, tmp_path / "wide", dtype="float32").bytes == 4 * sum(t.numel() for t in exact.values())
    assert all(torch.equal(tensor, exact[name]) for name, tensor in tensors_of(tmp_path / "wide").items())
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_quantized_file_is_what_quantizing_the_converted_one_gives(tmp_path):
    path = write_file(tmp_path / "model.gguf", llama_metadata(), llama_tensors("Q8_0"))
    convert(path, tmp_path / "hf", dtype="bfloat16")
    one, other = quantize(path, tmp_path / "one", "int8"), quantize(tmp_path / "hf", tmp_path / "other", "int8")
    assert one.errors == other.errors
    first, second = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other")
    assert all(torch.equal(tensor.to(second[name].dtype), second[name]) for name, tensor in first.items())
    assert first["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_rows_are_turned_as_llama_cpp_turns_them():
    """Of a head of four rows, halves (0 1 | 2 3) become pairs 0 2, 1 3."""
    rows = torch.arange(8)[:, None]
    assert turn(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(turn_back(turn(rows, 2), 2), rows)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama 3.1": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama 3.2": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def written(folder, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY | fields)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    write_byte_level(folder, "llama-bpe")
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_there_and_back_is_equal(tmp_path, dtype):
    written(tmp_path / "hf", dtype)
    convert(tmp_path / "hf", tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back")
    given, back = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "back")
    assert given.keys() == back.keys()
    assert all(torch.equal(tensor.float(), back[name].float()) for name, tensor in given.items())
    assert {t.dtype for n, t in back.items() if "norm" not in n} == {dtype}
    loaded = load(tmp_path / "model.gguf")
    assert loaded.model.dtype == dtype
    assert torch.equal(loaded.model(IDS).logits, load(tmp_path / "hf").model(IDS).logits)
    kept = {name: value for name, value in TINY.items() if name != "initializer_range"}
    assert {name: getattr(loaded.model.config, name) for name in kept} == kept


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": True}, {"attention_bias": True}, *ROPES.values()], ids=str)
@torch.no_grad()
def test_every_way_to_be_a_llama_comes_back_and_transformers_reads_it(tmp_path, fields):
    if "rope_type" in fields:
        fields = {"rope_parameters": {"rope_theta": 500000.0} | fields, "max_position_embeddings": 16384}
    model = written(tmp_path / "hf", **fields)
    path = tmp_path / "model.gguf"
    convert(tmp_path / "hf", path)
    loaded = load(path).model
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    if not fields.keys() & {"attention_bias", "rope_parameters"}:  # which transformers' loader passes over
        torch.testing.assert_close(theirs(path)(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_q8_0_is_the_packages_own(tmp_path):
    import gguf

    model = written(tmp_path / "hf", hidden_size=80, num_attention_heads=2)  # rows of 80 hold no blocks of 32
    convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="q8_0")
    given, back = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "model.gguf")
    rounded = back["model.layers.0.mlp.down_proj.weight"]
    wanted = given["model.layers.0.mlp.down_proj.weight"].numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    assert np.array_equal(rounded.numpy(), gguf.dequantize(gguf.quantize(wanted, kind), kind))
    assert back["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16
    assert back["model.norm.weight"].dtype == torch.float32
    assert load(tmp_path / "model.gguf", dtype="float32").model(IDS).logits.sub(model(IDS).logits).abs().max() < 0.3


def test_what_a_file_cannot_say_is_refused(tmp_path):
    def message(kind, dst="model.gguf", **options):
        with pytest.raises(kind) as caught:
            convert(tmp_path / "hf", tmp_path / dst, **options)
        return str(caught.value).replace(str(tmp_path), "TMP")

    written(tmp_path / "hf")
    assert message(ConfigError, dtype="q4_0") == (
        "dtype must be one of float32, float16, bfloat16, q8_0 for a GGUF file; got 'q4_0'"
    )
    assert message(ConfigError, dtype="q8_0", dst="out").startswith("dtype must be one of float32, float16, bfloat16")
    assert (
        message(ConfigError, to="gguf", dst="out") == "the name of a GGUF file must end in .gguf, and TMP/out does not"
    )
    assert "a GGUF file is one file" in message(ConfigError, qkv_concat=True)
    assert "a GGUF file is one file" in message(ConfigError, max_shard_size="1GB")
    (tmp_path / "there.gguf").write_bytes(b"")
    assert message(CheckpointError, dst="there.gguf") == "TMP/there.gguf is there already; name a new file"
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert message(CheckpointError).startswith("TMP/hf holds no tokenizer.json, of which a GGUF file's tokenizer is")
    assert not (tmp_path / "model.gguf").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "has no rope type 'dynamic'"),
        (
            {"rope_parameters": {**ROPES["yarn"], "attention_factor": 1.5}},
            "yarn with attention_factor 1.13863, not 1.5",
        ),
        ({"rope_parameters": {**ROPES["yarn"], "beta_fast": 8.0}}, "yarn with beta_fast 32, not 8"),
    ],
)
def test_rotation_that_llama_cpp_has_not_is_refused(tmp_path, fields, words):
    written(tmp_path / "hf", **fields)
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "hf", tmp_path / "model.gguf")


def test_float16_says_what_it_cannot_hold(tmp_path):
    model = written(tmp_path / "hf")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"reaches 1e\+06, and float16 ends at 65504"):
        convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="float16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.factor": 1.0}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(tmp_path, said, factor):
    """GGUF's older key, and llama.cpp's default of the type."""
    model = load(write_file(tmp_path / "model.gguf", llama_metadata(**said), llama_tensors("F16"))).model
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope.get("factor")) == (("linear", factor) if factor else ("default", None))


@torch.no_grad()
def test_biases_of_three_projections_are_a_qwen2s_and_come_back(tmp_path):
    import transformers

    torch.manual_seed(0)
    shared = {name: value for name, value in TINY.items() if name not in ("attention_bias", "mlp_bias", "head_dim")}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shared)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "hf")
    write_byte_level(tmp_path / "hf", "llama-bpe")
    convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="float32")
    read = load(tmp_path / "model.gguf", dtype="float32").model
    torch.testing.assert_close(read(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)

"""Checkpoint folders that are incomplete, damaged or malicious: each refused with a sentence that names the culprit."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.shards import PlannedTensor, parse_size, read_headers, read_tensors, write_planned
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from tests.fakes import official_weights, tiny_v2, write_checkpoint

INDEX = "model.safetensors.index.json"


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(begin: int, end: int, shape: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def planned(tensors: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor.of(name, tensor) for name, tensor in tensors.items()]


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        DeepseekV2ForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.fixture
def model():
    return tiny_v2()


@pytest.fixture
def weights(model):
    return official_weights(model)


@pytest.fixture
def write(model, tmp_path):
    config = json.loads(model.config.to_json_string())
    return lambda weights, shards=1: write_checkpoint(tmp_path, config, weights, shards)


@pytest.fixture
def sharded(write, weights):
    return write(weights, shards=2)


def edit_index(folder, name, shard):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def test_a_missing_tensor_is_named(write, weights):
    del weights[EXPERT]
    refused(write(weights), f"the checkpoint does not fit DeepseekV2ForCausalLM: missing {EXPERT}$")


def test_an_unexpected_tensor_is_named(write, weights):
    weights["model.layers.1.mlp.experts.8.up_proj.weight"] = torch.ones(16, 32)
    refused(write(weights), r"unexpected model.layers.1.mlp.experts.8.up_proj.weight$")


def test_a_misshapen_tensor_is_named_with_both_shapes(write, weights):
    weights[EXPERT] = torch.ones(32, 16)
    refused(write(weights), rf"{EXPERT} has shape \[32, 16\] in model.safetensors, and the config asks for \[16, 32\]")


@pytest.mark.parametrize(("dtype", "word"), [(torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_a_tensor_of_another_type_is_named(dtype, word, write, weights):
    weights[EXPERT] = weights[EXPERT].to(dtype)
    refused(
        write(weights), rf"{EXPERT} is stored as {word} in model.safetensors; weights must be F64, F32, F16 or BF16"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        raw_safetensors(b"{"),
        raw_safetensors([]),
        struct.pack("<Q", 2**62) + b"{}",
        raw_safetensors({"lm_head.weight": f32(0, 8192, [64, 32])}, b"\x00" * 100),
        raw_safetensors({"a": f32(0, 16, [4]), "b": f32(8, 24, [4])}, b"\x00" * 24),
        raw_safetensors({"a": f32(0, 16, [4]), "b": f32(32, 48, [4])}, b"\x00" * 48),
        raw_safetensors({"a": f32(0, 16, [5])}, b"\x00" * 16),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, b"\x00" * 16),
        raw_safetensors({"a": f32(-16, 0, [4])}, b"\x00" * 16),
        b"PK\x03\x04" + b"\x00" * 64,
    ],
    ids=[
        "empty",
        "too short",
        "header not JSON",
        "header a list",
        "header huge",
        "data missing",
        "overlap",
        "gap",
        "shape and offsets differ",
        "shape overflows",
        "negative offset",
        "a zip",
    ],
)
def test_a_damaged_file_is_named(content, write, weights):
    folder = write(weights)
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, r"model.safetensors cannot be read as safetensors: ")


def test_a_truncated_file_is_named(write, weights):
    folder = write(weights)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    refused(folder, r"model.safetensors cannot be read as safetensors: ")


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..\\x.safetensors", "x.bin", "..", 7],
)
def test_an_index_that_leaves_the_folder_is_refused(shard, sharded):
    edit_index(sharded, EXPERT, shard)
    refused(sharded, rf"{INDEX} places {EXPERT} in .*; a shard must be a .safetensors file of the same folder$")


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-000002.safetensors").unlink()
    refused(sharded, r"lacks 1 of its 2 shards: model-00002-of-000002.safetensors$")


def test_an_index_that_points_at_the_wrong_shard_is_refused(sharded):
    held = json.loads((sharded / INDEX).read_text())["weight_map"][EXPERT]
    other = "model-00001-of-000002.safetensors" if "00002-of" in held else "model-00002-of-000002.safetensors"
    edit_index(sharded, EXPERT, other)
    refused(sharded, rf"{INDEX} places {EXPERT} in {other}, which does not hold it$")


def test_a_tensor_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))
    save_file(load_file(first) | {"lm_head.weight": torch.ones(64, 32)}, first)
    save_file(load_file(second) | {"lm_head.weight": torch.ones(64, 32)}, second)
    refused(sharded, rf"tensor lm_head.weight is in two shards: {first.name} and {second.name}$")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "\ud800", "[" * 10**5])
def test_an_index_that_is_none_is_refused(content, sharded):
    (sharded / INDEX).write_bytes(content.encode("utf-8", "surrogatepass"))
    refused(sharded, rf"{INDEX} is not a safetensors index: ")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_read(name, write, weights):
    folder = write(weights)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    how = r" \(modelwright convert --allow-pickle reads the tensors alone, and runs nothing\)" if ".bin" in name else ""
    refused(
        folder,
        rf"holds only pickled weights \({name}\), which can run code when read; convert them to safetensors{how}$",
    )


def test_a_folder_without_weights_says_so(write, weights):
    folder = write(weights)
    (folder / "model.safetensors").unlink()
    refused(folder, rf"holds no weights: neither model.safetensors nor {INDEX}$")


def test_a_folder_without_a_config_says_so(tmp_path):
    refused(tmp_path, r"has no config.json$")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"config.json cannot be read as JSON: Expecting property name"),
        ("[]", r"config.json must hold a JSON object, and holds a list$"),
        ('"text"', r"config.json must hold a JSON object, and holds a str$"),
        ("[" * 10**5, r"config.json cannot be read as JSON: "),
    ],
)
def test_a_config_that_is_none_is_named(content, match, write, weights):
    folder = write(weights)
    (folder / "config.json").write_text(content)
    refused(folder, match)


def test_a_config_of_another_family_is_refused(write, weights):
    folder = write(weights)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match='model_type must be "deepseek_v2" here, got "llama"'):
        DeepseekV2ForCausalLM.from_pretrained(folder)


def test_a_file_is_no_checkpoint(write, weights):
    refused(write(weights) / "model.safetensors", r"model.safetensors is not a folder and not a hub id$")


def test_a_name_that_the_hub_does_not_have_is_refused():
    refused("nobody/nothing", r"nobody/nothing is not a folder here, and the hub did not answer with it: ")


def test_links_such_as_the_hub_cache_makes_are_followed(write, weights, model, tmp_path):
    folder = write(weights)
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "0123")
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_single_file_comes_before_an_index(sharded, weights):
    weights["lm_head.weight"] += 1
    save_file(weights, sharded / "model.safetensors")
    assert {header.shard.name for header in read_headers(sharded).values()} == {"model.safetensors"}


def test_shards_are_filled_in_order_up_to_the_limit(tmp_path):
    tensors = {f"t{i}": torch.full((5,), float(i)) for i in range(5)}  # 20 bytes each
    write_planned(tmp_path, planned(tensors), 40)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 100}
    assert index["weight_map"] == {f"t{i}": f"model-0000{i // 2 + 1}-of-00003.safetensors" for i in range(5)}
    assert {name: tensor.tolist() for name, tensor in read_tensors(read_headers(tmp_path))} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_a_tensor_larger_than_the_limit_gets_a_shard_of_its_own(tmp_path):
    write_planned(tmp_path, planned({"a": torch.ones(1), "b": torch.ones(100), "c": torch.ones(1)}), 8)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_files_of_an_earlier_checkpoint_are_removed_and_others_stay(tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"kept")
    tensors = {f"t{i}": torch.ones(5) for i in range(4)}
    write_planned(tmp_path, planned(tensors), 20)
    write_planned(tmp_path, planned(tensors), 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "other.safetensors"]
    write_planned(tmp_path, planned(tensors), 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
        "other.safetensors",
    ]


def test_writing_replaces_a_link_and_not_what_it_points_at(tmp_path):
    (tmp_path / "blob").write_bytes(b"untouched")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    write_planned(folder, planned({"a": torch.ones(1)}), 1000)
    assert (tmp_path / "blob").read_bytes() == b"untouched"
    assert not (folder / "model.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), ("200kb", 200_000), (17, 17), (" 1 KIB ", 1024)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "1TB", "", 0, -5])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match=r"max_shard_size must be bytes or a number with KB, MB or GB, not "):
        parse_size(text)

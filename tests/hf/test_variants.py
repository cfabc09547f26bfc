"""Weights of several variants in one folder, by transformers' names, and what saving one of them does to the others."""

import pytest
import torch
import transformers

from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.llama.model import LlamaForCausalLM
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, pair, tiny_llama

FAMILIES = {
    "llama": lambda seed: tiny_llama(base=HUGGING_FACE, seed=seed),
    "deepseek_v2": lambda seed: tiny_v2(seed=seed),
    "deepseek_vl2": lambda seed: tiny_vl2(seed=seed),
    "imagegpt": lambda seed: tiny_imagegpt(seed=seed),
}


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models hold the same numbers."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def weights(folder) -> set[str]:
    """The names of the weights' files."""
    return {path.name for path in folder.iterdir() if path.name.startswith("model")}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("size", ["5GB", "40KB"], ids=["one file", "shards"])
def test_each_variant_is_read_and_kept_apart(build, size, tmp_path):
    plain, half, again = build(0), build(1), build(2)
    plain.save_pretrained(tmp_path, max_shard_size=size)
    alone = weights(tmp_path)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    both = weights(tmp_path)
    assert alone < both and all(".fp16" in name for name in both - alone)
    for variant, wanted in ((None, plain), ("fp16", half)):
        assert equal(type(plain).from_pretrained(tmp_path, variant=variant), wanted)
    again.save_pretrained(tmp_path, max_shard_size=size)
    assert weights(tmp_path) == both
    assert equal(type(plain).from_pretrained(tmp_path), again)
    assert equal(type(plain).from_pretrained(tmp_path, variant="fp16"), half)


def test_saving_deletes_the_shards_that_it_replaces_and_no_others(tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    for name in ("model_of_someone_else.safetensors", "model-lora.safetensors", "model.ema.safetensors"):
        (tmp_path / name).write_bytes(b"")
    others = weights(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    model.save_pretrained(tmp_path, max_shard_size="20KB", variant="fp16")
    assert len(weights(tmp_path) - others) > 6
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="fp16")
    assert weights(tmp_path) - others == {"model.safetensors", "model.fp16.safetensors"}
    assert others < weights(tmp_path)


@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["one file", "shards"])
def test_names_are_transformers_own(size, tmp_path):
    ours, theirs = pair()
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16", max_shard_size=size)
    ours.save_pretrained(tmp_path / "ours", variant="fp16", max_shard_size=size)
    assert equal(LlamaForCausalLM.from_pretrained(tmp_path / "theirs", variant="fp16"), ours)
    assert equal(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", variant="fp16"), theirs)


def test_a_variant_that_is_not_there_is_refused(tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path, variant="fp16")
    for variant, message in (
        (None, r"neither model.safetensors nor model.safetensors.index.json; variant= reads .* model.fp16.safetensors"),
        ("bf16", "neither model.bf16.safetensors nor model.safetensors.index.bf16.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            LlamaForCausalLM.from_pretrained(tmp_path, variant=variant)
    for call in (LlamaForCausalLM.from_pretrained, model.save_pretrained):
        with pytest.raises(ConfigError, match=r"variant must be a word such as fp16, got '\.\./fp16'"):
            call(tmp_path, variant="../fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_without_an_index_say_so_and_name_no_variant(variant, tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path, variant=variant, max_shard_size="20KB")
    (index,) = tmp_path.glob("*index*")
    index.unlink()
    with pytest.raises(CheckpointError, match=rf"holds 5 shards \(model.*-00001-of-00005.*\) and no {index.name}"):
        LlamaForCausalLM.from_pretrained(tmp_path, variant=variant)


@pytest.mark.parametrize(
    "build", [*FAMILIES.values(), lambda seed: tiny_llama(seed=seed)], ids=[*FAMILIES, "mindformers"]
)
@torch.no_grad()
def test_a_model_of_doubles_is_saved_and_read(build, tmp_path):
    model, ids = build(0).double(), torch.arange(2, 9)[None]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.dtype == torch.float64 and equal(again, model)
    assert torch.equal(again(ids).logits, model(ids).logits)

"""`convert` of pytorch_model.bin: its tensors as transformers reads them, and never what else a pickle would run."""

import json
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError
from tests.fakes import official_weights, tiny_v2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

MODELS = {"llama": lambda: tiny_llama(base=HUGGING_FACE), "deepseek_v2": tiny_v2, "imagegpt": tiny_imagegpt}
BESIDE = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "deepseek_v2": {},
    "imagegpt": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8).tril(),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
}
"""What files of older releases hold besides."""


def pickled(folder, model, parts=1, beside=None, legacy=False):
    """The folder of a model as older transformers wrote it."""
    model.save_pretrained(folder)
    for path in folder.glob("model*"):
        path.unlink()
    state = official_weights(model) | (beside or {})
    names = sorted(state)
    placed = {}
    for part in range(parts):
        file = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        held = {name: state[name] for name in names[part::parts]}
        torch.save(held, folder / file, _use_new_zipfile_serialization=not legacy)
        placed |= dict.fromkeys(held, file)
    if parts > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_the_tensors_are_those_of_the_file(kind, parts, legacy, tmp_path):
    model = MODELS[kind]()
    folder = pickled(tmp_path / "old", model, parts, BESIDE[kind], legacy)
    report = convert(folder, tmp_path / "new", allow_pickle=True)
    assert {dropped.name for dropped in report.dropped} == set(BESIDE[kind])
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".json", ".safetensors"}
    assert not (tmp_path / "new" / "pytorch_model.bin.index.json").exists()
    read, wanted = official_weights(type(model).from_pretrained(tmp_path / "new")), official_weights(model)
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_transformers_own_model_gives_the_same_scores(tmp_path):
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    theirs.config.save_pretrained(tmp_path / "old")
    torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new", allow_pickle=True)
    ids = torch.arange(3, 12)[None]
    ours = type(tiny_llama()).from_pretrained(tmp_path / "new")
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_masks_of_bytes_in_safetensors_are_no_quantized_weights(tmp_path):
    """As the hub's own conversion of openai/imagegpt holds them."""
    model = MODELS["imagegpt"]()
    model.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    save_file(load_file(file) | BESIDE["imagegpt"], file)
    convert(tmp_path / "old", tmp_path / "new")
    read = type(model).from_pretrained(tmp_path / "new")
    assert torch.equal(read.lm_head.weight, model.lm_head.weight)
    assert quantize(tmp_path / "old", tmp_path / "int8", "int8").tensors > len(official_weights(model))


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_a_pickle_would_run_is_refused_and_not_run(legacy, tmp_path):
    folder, canary = pickled(tmp_path / "old", MODELS["llama"]()), tmp_path / "canary"
    held = {"a": torch.ones(2), "b": Canary(canary)}
    torch.save(held, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"\.bin holds more than tensors \(.*mkdir\), which reading it"):
        convert(folder, tmp_path / "new", allow_pickle=True)
    assert not canary.exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([torch.ones(2)], "must hold tensors by name, and holds a list"),
        ({"state_dict": {"a": torch.ones(2)}}, "must hold tensors by name, and 'state_dict' is a dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, why, tmp_path):
    folder = pickled(tmp_path / "old", MODELS["llama"]())
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=why):
        convert(folder, tmp_path / "new", allow_pickle=True)


def test_damaged_and_missing_files_are_refused(tmp_path):
    folder = pickled(tmp_path / "old", MODELS["llama"](), parts=2)
    index = folder / "pytorch_model.bin.index.json"
    first, second = sorted(folder.glob("*.bin"))
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{first.name} cannot be read as torch's: "):
        convert(folder, tmp_path / "new", allow_pickle=True)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of its 2 files: {second.name}$"):
        convert(folder, tmp_path / "new", allow_pickle=True)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    with pytest.raises(CheckpointError, match=r"must place tensors in \.bin files beside it, and places"):
        convert(folder, tmp_path / "new", allow_pickle=True)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"holds parts of pickled weights and no pytorch_model\.bin\.index\.json"):
        convert(folder, tmp_path / "new", allow_pickle=True)


def test_safetensors_come_first_and_pickles_only_where_they_are_asked_for(tmp_path):
    model = MODELS["llama"]()
    folder = pickled(tmp_path / "old", model)
    with pytest.raises(CheckpointError, match="holds only pickled weights"):
        convert(folder, tmp_path / "new")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    model.save_pretrained(folder)
    convert(folder, tmp_path / "new", allow_pickle=True)
    assert torch.equal(type(model).from_pretrained(tmp_path / "new").lm_head.weight, model.lm_head.weight)

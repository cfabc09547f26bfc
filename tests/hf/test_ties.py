"""``tie_word_embeddings`` beside a head that differs from the embedding: the tensors decide, and no road drops them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError
from modelwright.families.read import read_config
from tests.fakes import MOE, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

WIDE = {"hidden_size": 64, "intermediate_size": 64}
V2 = MOE | WIDE | {"moe_intermediate_size": 64, "q_lora_rank": None, "v_head_dim": 16}
MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE, **WIDE),
    "deepseek_v2": lambda: tiny_v2(base=V2),
    "deepseek_vl2": lambda: tiny_vl2(language=V2, projector_config={"n_embed": 64, "input_dim": 16}),
    "imagegpt": lambda: tiny_imagegpt(n_embd=48),
}


def names_of(model):
    return next(iter(model._tied_weights_keys.items()))


def written(folder, model, changed=None, flag=True):
    """The model's checkpoint with the flag on, whatever its tensors are."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (config.get("language_config") or config)["tie_word_embeddings"] = flag
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors") | (changed or {})
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(found, wanted):
    assert found.keys() == wanted.keys()
    return all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)


def flag_of(folder):
    return read_config(folder).get_text_config().tie_word_embeddings


def load_network_of(folder):
    checkpoint = find_checkpoint(folder)
    return checkpoint.record.network_class.read(folder, checkpoint.config_class.from_pretrained(folder))


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 7, vocab=16)).logits


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", MODELS)
def test_no_road_drops_a_head_of_its_own(kind, tmp_path):
    made = MODELS[kind]()
    head, embedding = names_of(made)
    src = written(tmp_path / "src", made)
    wanted = load_file(src / "model.safetensors")
    assert head in wanted and not torch.equal(wanted[head], wanted[embedding][: len(wanted[head])])

    loaded = type(made).from_pretrained(src)
    assert torch.equal(logits(loaded), logits(made))
    network = load_network_of(src)
    assert torch.equal(network.get_output_embeddings().weight, made.get_output_embeddings().weight)

    loaded.save_pretrained(tmp_path / "saved")
    convert(src, tmp_path / "converted")
    for name in ("saved", "converted"):
        assert same(load_file(tmp_path / name / "model.safetensors"), wanted), name
        assert not flag_of(tmp_path / name)
        assert torch.equal(logits(type(made).from_pretrained(tmp_path / name)), logits(made))
    quantize(src, tmp_path / "int8", "int8")
    rounded = load_file(tmp_path / "int8" / "model.safetensors")
    assert torch.equal(rounded[head], wanted[head]) and torch.equal(rounded[embedding], wanted[embedding])
    quantize(src, tmp_path / "head too", "int8", keep_head=False)
    assert load_file(tmp_path / "head too" / "model.safetensors")[head].dtype == torch.int8


def test_it_is_what_transformers_loads(tmp_path):
    made = MODELS["llama"]()
    theirs = transformers.LlamaForCausalLM.from_pretrained(written(tmp_path / "src", made))
    ours = type(made).from_pretrained(tmp_path / "src")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)
    ours.save_pretrained(tmp_path / "saved")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, theirs.model.embed_tokens.weight)


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_that_equals_the_embedding_is_tied_and_saved_once(kind, tmp_path):
    made = MODELS[kind]()
    head, embedding = names_of(made)
    rows = made.state_dict()[embedding][: len(made.state_dict()[head])].clone()
    src = written(tmp_path / "src", made, {head: rows})
    loaded, info = type(made).from_pretrained(src, output_loading_info=True)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert not info["missing_keys"] and not info["unexpected_keys"]
    loaded.save_pretrained(tmp_path / "saved")
    assert head not in load_file(tmp_path / "saved" / "model.safetensors") and flag_of(tmp_path / "saved")


def test_either_of_the_two_is_enough_as_in_transformers(tmp_path):
    made = MODELS["llama"]()
    head, embedding = names_of(made)
    src = written(tmp_path / "src", made, {embedding: None})
    theirs = transformers.LlamaForCausalLM.from_pretrained(src)
    ours, network = type(made).from_pretrained(src), load_network_of(src)
    for model in (ours, network):
        assert torch.equal(model.get_input_embeddings().weight, theirs.model.embed_tokens.weight)
        torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    convert(src, tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert torch.equal(converted[embedding], made.lm_head.weight) and head not in converted
    quantize(src, tmp_path / "int8", "int8")
    assert torch.equal(type(made).from_pretrained(tmp_path / "int8").lm_head.weight, made.lm_head.weight)
    with pytest.raises(CheckpointError, match=f"missing {embedding}"):
        type(made).from_pretrained(written(tmp_path / "apart", made, {embedding: None}, flag=False))


def test_a_head_untied_by_hand_is_saved(tmp_path):
    made = tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True)
    made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach() + 1)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, made.lm_head.weight) and not loaded.config.tie_word_embeddings
    assert made.config.tie_word_embeddings  # the caller's own config is not changed


def test_a_mindformers_folder_keeps_both(tmp_path):
    made = MODELS["llama"]()
    src = written(tmp_path / "src", made)
    wanted = load_file(src / "model.safetensors")
    convert(src, tmp_path / "theirs", to="mindformers")
    text = (tmp_path / "theirs" / "mindformers.yaml").read_text()
    assert "tie_word_embeddings: false" in text
    (tmp_path / "theirs" / "mindformers.yaml").write_text(
        text.replace("tie_word_embeddings: false", "tie_word_embeddings: true")
    )
    convert(tmp_path / "theirs", tmp_path / "back")
    assert same(load_file(tmp_path / "back" / "model.safetensors"), wanted) and not flag_of(tmp_path / "back")


def test_a_named_checkpoint_brings_its_own_head(tmp_path):
    made = MODELS["llama"]()
    src = written(tmp_path / "src", made)
    fields = HUGGING_FACE | WIDE | {"tie_word_embeddings": True, "checkpoint_name_or_path": str(src)}
    filled = type(made).from_config(type(made.config)(**fields))
    assert torch.equal(filled.lm_head.weight, made.lm_head.weight)
    assert torch.equal(logits(filled), logits(made))

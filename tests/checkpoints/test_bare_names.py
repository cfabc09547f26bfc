"""Names without the decoder's prefix, as a base model saves them, are converted as those with it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.errors import ConfigError
from tests.checkpoints.gguf.tokenizers import write_byte_level
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama

MODELS = {
    "own head": lambda: tiny_llama(base=HUGGING_FACE, vocab_size=600),
    "tied": lambda: tiny_llama(base=HUGGING_FACE, vocab_size=600, tie_word_embeddings=True),
    "experts": lambda: tiny_llama(base=MINDFORMERS, vocab_size=600, moe_config=EXPERTS),
}


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options", [{}, {"qkv_concat": True}, {"num_key_value_heads": 1}, {"dtype": "bfloat16"}], ids=str
)
def test_the_same_mindformers_checkpoint_is_written(kind, options, tmp_path):
    MODELS[kind]().save_pretrained(tmp_path / "usual")
    MODELS[kind]().save_pretrained(tmp_path / "bare")
    file = tmp_path / "bare" / "model.safetensors"
    named = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
    for folder in ("usual", "bare"):
        convert(tmp_path / folder, tmp_path / f"{folder} mf", to="mindformers", **options)
    assert same(weights(tmp_path / "bare mf"), weights(tmp_path / "usual mf"))


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], None])
def test_a_tied_decoder_alone_is_converted_as_its_whole_model(architectures, tmp_path):
    model = MODELS["tied"]()
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "decoder")
    config = json.loads((tmp_path / "decoder" / "config.json").read_text()) | {"architectures": architectures}
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(config))
    for folder in ("whole", "decoder"):
        write_byte_level(tmp_path / folder, "llama-bpe")
        convert(tmp_path / folder, tmp_path / f"{folder} mf", to="mindformers")
        convert(tmp_path / folder, tmp_path / f"{folder}.gguf")
        convert(tmp_path / f"{folder}.gguf", tmp_path / f"{folder} back")
    assert same(weights(tmp_path / "decoder mf"), weights(tmp_path / "whole mf"))
    assert same(weights(tmp_path / "decoder back"), weights(tmp_path / "whole back"))


def test_a_decoder_that_says_so_is_refused_by_its_name(tmp_path):
    MODELS["own head"]().model.save_pretrained(tmp_path / "decoder")
    with pytest.raises(ConfigError, match="is written for LlamaForCausalLM only, not for LlamaModel"):
        convert(tmp_path / "decoder", tmp_path / "mf", to="mindformers")

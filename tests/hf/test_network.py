"""A network read from a folder: tensor by tensor what ``from_pretrained`` reads, for every family."""

from typing import Any

import pytest
import torch

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.network import DeepseekV2Causal
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.serving.load import load_network
from tests.engine.engines import engine_of, greedy
from tests.fakes import MHA, MOE, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import MINDFORMERS, tiny_llama

NOAUX = MOE | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 2, "topk_group": 1}
MODELS = {
    "latent": lambda: tiny_v2(base=MOE),
    "noaux": lambda: tiny_v2(base=NOAUX),
    "tied": lambda: tiny_v2(base=MHA, tie_word_embeddings=True),
    "pictures": tiny_vl2,
    "1D": lambda: tiny_vl2(tile_tag="1D"),
    "mindformers": lambda: tiny_llama(base=MINDFORMERS),
    "bfloat16": lambda: tiny_llama(base=MINDFORMERS, param_init_type="bfloat16", layernorm_compute_type="float32"),
    "pixels": tiny_imagegpt,
    "pixels, tied": lambda: tiny_imagegpt(tie_word_embeddings=True),
}


def network_of(folder: Any, dtype: Any = "auto", **overrides: Any) -> Any:
    record = find_checkpoint(folder).record
    return record.network_class.read(folder, record.config_class.from_pretrained(folder, **overrides), dtype)


def same(network: Any, model: Any) -> None:
    ours, theirs = network.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].device) == (tensor.dtype, tensor.device), name
        assert torch.equal(ours[name], tensor), name
    own = dict(network.named_buffers())
    assert {name: (own[name].dtype, own[name].tolist()) for name in own} == {
        name: (buffer.dtype, buffer.tolist()) for name, buffer in model.named_buffers()
    }


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_it_holds_what_from_pretrained_reads(tmp_path, kind, dtype):
    made = MODELS[kind]()
    made.save_pretrained(tmp_path)
    network = network_of(tmp_path, dtype)
    assert not isinstance(network, ModelwrightPreTrainedModel) and not network.training
    assert network.ends_of_sentence() == made.ends_of_sentence()
    same(network, type(made).from_pretrained(tmp_path, dtype=dtype))


@pytest.mark.parametrize("kind", ["tied", "pixels, tied"])
def test_tied_parts_are_one(tmp_path, kind):
    MODELS[kind]().save_pretrained(tmp_path)
    network = network_of(tmp_path)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["latent", "noaux", "mindformers", "pixels"])
def test_it_computes_what_the_model_computes(tmp_path, kind):
    made = MODELS[kind]()
    made.save_pretrained(tmp_path)
    ids = tokens(2, 7, vocab=16)
    with torch.no_grad():
        assert torch.equal(network_of(tmp_path)(input_ids=ids).logits, made(input_ids=ids).logits)


def test_with_pictures_too_and_through_the_engine(tmp_path):
    made = tiny_vl2()
    made.save_pretrained(tmp_path)
    network, inputs = network_of(tmp_path), vl2_inputs([[(1, 2)]])
    with torch.no_grad():
        assert torch.equal(network(**inputs).logits, made(**inputs).logits)
    (ours,), (theirs,) = (engine_of(model).generate([inputs], greedy(6)) for model in (network, made))
    assert ours.completions[0].tokens == theirs.completions[0].tokens


@pytest.mark.parametrize("method", ["int8_weight_only", "int4_weight_only"])
def test_weights_are_rounded_as_they_are_read_and_read_as_they_were_rounded(tmp_path, method):
    made = tiny_v2(base=MHA, hidden_size=64, intermediate_size=64, moe_intermediate_size=64)
    made.save_pretrained(tmp_path / "floats")
    wanted = type(made).from_pretrained(tmp_path / "floats", quantization_config={"quant_method": method})
    same(network_of(tmp_path / "floats", quant_config={"quant_method": method}), wanted)
    wanted.save_pretrained(tmp_path / "integers")
    same(network_of(tmp_path / "integers"), wanted)


def test_ends_of_sentence_are_the_generation_configs(tmp_path):
    made = tiny_v2(eos_token_id=5)
    made.save_pretrained(tmp_path)
    assert network_of(tmp_path).ends_of_sentence() == 5
    made.generation_config.eos_token_id = [5, 7]
    made.save_pretrained(tmp_path)
    assert made.ends_of_sentence() == network_of(tmp_path).ends_of_sentence() == [5, 7]
    (tmp_path / "generation_config.json").unlink()
    assert network_of(tmp_path).ends_of_sentence() == 5


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    tiny_v2(base=MHA).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit DeepseekV2Causal: missing .*model\.layers\.\d+\.mlp"):
        network_of(tmp_path, num_hidden_layers=9)
    with pytest.raises(ConfigError, match="dtype must be auto or one of float64"):
        network_of(tmp_path, "int8")


def test_without_a_tokenizer_nothing_is_loaded(tmp_path):
    tiny_v2(base=MHA).save_pretrained(tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.record.network_class is DeepseekV2Causal and checkpoint.draws_tokens
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_network(checkpoint)

"""What engines and requests get where nobody says: the command's own, or a Llama's that was configured to serve."""

import pytest

from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.errors import ConfigError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.llama.config import LlamaConfig
from modelwright.serving.defaults import engine_config, sampling_params
from tests.fakes import VL2

SERVING = {
    "dialect": "mindformers",
    "use_past": True,
    "batch_size": 3,
    "seq_length": 96,
    "max_decode_length": 64,
    "block_size": 8,
    "num_blocks": 20,
    "do_sample": True,
    "top_k": 7,
    "repetition_penalty": 1.5,
    "eos_token_id": 2,
}


def test_a_llama_configured_to_serve_says_how():
    config = LlamaConfig(**SERVING)
    engine = engine_config(config, {})
    assert (engine.max_batch, engine.max_context, engine.page_size, engine.num_pages) == (3, 96, 8, 20)
    assert not engine.chunk_prefill
    params = sampling_params(config, {})
    assert (params.temperature, params.top_k, params.repetition_penalty) == (1.0, 7, 1.5)
    assert (params.max_tokens, params.max_length, params.eos_token_ids) == (None, 64, (2,))


def test_what_is_asked_for_comes_before_what_the_config_says():
    config = LlamaConfig(**SERVING)
    engine = engine_config(config, {"max_batch": 1, "num_pages": 5})
    assert (engine.max_batch, engine.num_pages, engine.page_size) == (1, 5, 8)
    params = sampling_params(config, {"temperature": 0.0, "max_tokens": 9})
    assert (params.is_greedy, params.max_tokens, params.top_k) == (True, 9, 7)


@pytest.mark.parametrize("config", [LlamaConfig(**SERVING | {"use_past": False}), DeepseekVLV2Config(**VL2)])
def test_other_models_are_greedy_and_brief(config):
    assert engine_config(config, {"max_batch": 2}) == EngineConfig(max_batch=2)
    assert sampling_params(config, {}) == SamplingParams(temperature=0.0, max_tokens=512, skip_special_tokens=False)
    assert sampling_params(config, {"max_length": 9}).max_tokens is None


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p"])
def test_a_limit_of_choice_asks_for_sampling(name):
    config = DeepseekVLV2Config(**VL2)
    assert sampling_params(config, {name: 1}).temperature == 1.0
    assert sampling_params(config, {name: 1, "temperature": 0.5}).temperature == 0.5


def test_a_config_that_asks_for_a_backend_is_heard():
    assert engine_config(LlamaConfig(**SERVING | {"llm_backend": "compile"}), {}).backend == "record"


@pytest.mark.parametrize(
    "config", [LlamaConfig(max_position_embeddings=64), DeepseekVLV2Config(**VL2)], ids=["llama", "vl2"]
)
def test_a_context_beyond_the_models_is_found_before_its_weights_are_read(config):
    most = config.get_text_config().max_position_embeddings
    assert engine_config(config, {"max_context": most}).max_context == most
    with pytest.raises(
        ConfigError, match=rf"max_context \({most + 1}\) must be at most the model's context \({most}\)"
    ):
        engine_config(config, {"max_context": most + 1})

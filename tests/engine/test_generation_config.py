"""A transformers generation config read as `SamplingParams`."""

import math

import pytest
from transformers import GenerationConfig

from modelwright.engine.params import SamplingParams
from modelwright.errors import RequestError


def test_settings_keep_their_meaning_under_our_names():
    config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=0.1,
        repetition_penalty=1.1,
        max_new_tokens=7,
        max_length=90,
        min_new_tokens=2,
        num_return_sequences=3,
        eos_token_id=[4, 5],
        stop_strings=["\n\n"],
        bad_words_ids=[[8], [9, 10]],
        suppress_tokens=[11],
    )
    assert SamplingParams.from_generation_config(config, seed=1) == SamplingParams(
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=0.1,
        repetition_penalty=1.1,
        max_tokens=7,
        max_length=90,
        min_tokens=2,
        n=3,
        eos_token_ids=(4, 5),
        stop=("\n\n",),
        bad_words=((8,), (9, 10)),
        logit_bias={11: -math.inf},
        seed=1,
    )


def test_without_do_sample_it_is_greedy_and_limits_do_not_count():
    config = GenerationConfig(do_sample=False, eos_token_id=3, repetition_penalty=1.3)
    assert SamplingParams.from_generation_config(config) == SamplingParams(
        temperature=0.0, eos_token_ids=(3,), repetition_penalty=1.3
    )
    assert SamplingParams.from_generation_config(GenerationConfig()).is_greedy


def test_an_unsaid_top_k_is_what_generate_takes():
    """`generate()` fills what a config leaves open: 50 for top_k."""
    assert SamplingParams.from_generation_config(GenerationConfig(do_sample=True)).top_k == 50
    assert SamplingParams.from_generation_config(GenerationConfig(do_sample=True, top_k=0)).top_k == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "the engine does not serve num_beams of a generation config, got 4"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size of a generation config, got 3"),
        ({"forced_eos_token_id": 3}, "forced_eos_token_id of a generation config, got 3"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p of a generation config, got 0.5"),
    ],
)
def test_what_the_engine_does_not_do_is_refused(given, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams.from_generation_config(GenerationConfig(**given))


def test_values_that_change_nothing_pass():
    config = GenerationConfig(num_beams=1, no_repeat_ngram_size=0, typical_p=1.0, guidance_scale=1, min_length=0)
    assert SamplingParams.from_generation_config(config) == SamplingParams(temperature=0.0)

"""What `SamplingParams` and `Guide` take and refuse, with the words of each refusal."""

import dataclasses
import math
import re

import numpy as np
import pytest

from modelwright.configs.sampling import SamplingSettings
from modelwright.engine.params import Guide, SamplingParams
from modelwright.errors import RequestError


def test_the_defaults_sample_freely_and_to_the_end_of_the_context():
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p, params.n) == (1.0, 0, 1.0, 0.0, 1)
    assert not params.is_greedy and params.room(10, 100) == 90
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 2.0  # type: ignore[misc]


def test_values_are_kept_in_their_plain_types():
    bias = {3: 1.5}
    params = SamplingParams(
        stop="end", stop_token_ids=[1, 2], bad_words=["x", [4, 5]], logit_bias=bias, top_k=np.int64(4), temperature=1
    )  # type: ignore[arg-type]
    bias[3] = 7.0
    assert params.stop == ("end",) and params.stop_token_ids == (1, 2) and params.bad_words == ("x", (4, 5))
    assert params.logit_bias == {3: 1.5} and type(params.top_k) is int
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
        ({"temperature": math.nan}, "temperature must be a finite number, got nan (float)"),
        ({"temperature": "hot"}, "temperature must be a finite number, got 'hot' (str)"),
        ({"top_k": -2}, "top_k must be at least -1, got -2"),
        ({"top_k": 1.5}, "top_k must be int, got 1.5 (float)"),
        ({"top_p": 1.1}, "top_p must be from 0 to 1, got 1.1"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, got -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        ({"presence_penalty": 2.5}, "presence_penalty must be from -2 to 2, got 2.5"),
        ({"frequency_penalty": -3}, "frequency_penalty must be from -2 to 2, got -3.0"),
        ({"max_tokens": -1}, "max_tokens must be at least 0, got -1"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, got -1"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens (5) must be at most max_tokens (4)"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0 to 2**63 - 1, got -1"),
        ({"seed": 2**63}, f"seed must be from 0 to 2**63 - 1, got {2**63}"),
        ({"logprobs": -1}, "logprobs must be at least 0, got -1"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be at least 0, got -1"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must name tokens by their ids, got -1"),
        ({"logit_bias": {"7": 1.0}}, "logit_bias must name tokens by their ids, got '7'"),
        (
            {"logit_bias": {7: math.nan}},
            "logit_bias of token 7 must be a number from -1e+30 to 1e+30, or -inf, got nan",
        ),
        (
            {"logit_bias": {7: math.inf}},
            "logit_bias of token 7 must be a number from -1e+30 to 1e+30, or -inf, got inf",
        ),
        ({"logit_bias": [7]}, "logit_bias must be dict[int, float] or None, got [7] (list)"),
        ({"stop": ["a", ""]}, "a stop text must not be empty, got ''"),
        ({"stop": 5}, "stop must be tuple[str, ...], got 5 (int)"),
        ({"stop_token_ids": [3, -1]}, "stop_token_ids must be at least 0, got -1"),
        ({"eos_token_ids": [-4]}, "eos_token_ids must be at least 0, got -4"),
        ({"bad_words": [[]]}, "a bad word must not be empty, got ()"),
        ({"bad_words": [[1, -1]]}, "a bad word's ids must be at least 0, got (1, -1)"),
        ({"ignore_eos": 1}, "ignore_eos must be bool, got 1 (int)"),
        ({"guide": "json"}, "guide must be Guide or None, got 'json' (str)"),
    ],
)
def test_a_bad_value_is_refused_with_rule_and_value(given, message):
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        SamplingParams(**given)


def test_zero_and_next_to_zero_are_greedy():
    assert SamplingParams(temperature=0).is_greedy and SamplingParams(temperature=1e-6).is_greedy
    assert not SamplingParams(temperature=1e-4).is_greedy


def test_a_configs_settings_become_params():
    settings = SamplingSettings(top_k=7, top_p=0.8, repetition_penalty=1.2, max_decode_length=30, eos_token_ids=(2, 9))
    params = SamplingParams.from_settings(settings, seed=4)
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (1.0, 7, 0.8, 1.2)
    assert (params.max_length, params.max_tokens, params.eos_token_ids, params.seed) == (30, None, (2, 9), 4)
    assert params.room(10, 100) == 20
    assert SamplingParams.from_settings(SamplingSettings(do_sample=False)).is_greedy
    assert SamplingParams.from_settings(settings, max_tokens=50).room(10, 100) == 50


@pytest.mark.parametrize(
    ("given", "prompt", "context", "room"),
    [({}, 3, 8, 5), ({"max_tokens": 2}, 3, 8, 2), ({"max_tokens": 9}, 3, 8, 5), ({"max_length": 7}, 3, 8, 4)],
)
def test_room_is_the_least_of_the_limits(given, prompt, context, room):
    assert SamplingParams(**given).room(prompt, context) == room


def test_no_room_is_refused_with_both_numbers():
    with pytest.raises(
        RequestError, match=r"the prompt is 8 tokens long and the model's context holds 8, which leaves"
    ):
        SamplingParams(max_tokens=1).room(8, 8)
    with pytest.raises(RequestError, match=r"^max_length \(5\) must be above the prompt's 6 tokens$"):
        SamplingParams(max_length=5).room(6, 100)


def test_ends_are_the_models_own_unless_said_otherwise():
    assert SamplingParams().ends((1,)) == {1}
    assert SamplingParams(eos_token_ids=(5, 6), stop_token_ids=(7,)).ends((1,)) == {5, 6, 7}
    assert SamplingParams(ignore_eos=True, stop_token_ids=(7,)).ends((1,)) == {7}


@pytest.mark.parametrize("given", [{"logit_bias": {50: 1.0}}, {"stop_token_ids": [50]}, {"bad_words": ["x", [1, 50]]}])
def test_tokens_outside_the_vocabulary_are_refused(given):
    params = SamplingParams(**given)
    params.check_vocabulary(51)
    with pytest.raises(
        RequestError, match=rf"^{next(iter(given))} must name tokens below the vocabulary's 50, got 50$"
    ):
        params.check_vocabulary(50)


def test_a_guide_is_one_of_three_or_boxes_or_both():
    assert Guide(json_schema={"type": "object"}).json_schema == '{"type": "object"}'
    assert Guide(json_schema={"a": 1, "b": 2}) == Guide(json_schema='{"a":1,"b":2}')
    assert hash(Guide(boxes=True)) == hash(Guide(boxes=True))
    with pytest.raises(RequestError, match=r"a guide must be one of json_schema, regex, grammar, boxes, got none"):
        Guide()
    with pytest.raises(RequestError, match=r"got \['regex', 'grammar'\]"):
        Guide(regex="a", grammar="b", boxes=True)
    with pytest.raises(RequestError, match=r"a guide's json_schema must be JSON, got '\{'"):
        Guide(json_schema="{")
    with pytest.raises(RequestError, match=r"a guide's regex must be text, got 5"):
        Guide(regex=5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"a guide's boxes must be True or False, got 3"):
        Guide(boxes=3)  # type: ignore[arg-type]

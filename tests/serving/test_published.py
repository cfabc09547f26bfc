"""What a publisher's generation_config.json says of sampling, read as vLLM reads it."""

import json

import pytest

from modelwright.serving.published import left_out, published_sampling


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}, None),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 0.9}),
        ({"eos_token_id": 2}, {}),
        ({"_from_model_config": True, "do_sample": False, "top_k": 50}, {}),
        ({"temperature": None, "top_p": "0.9", "top_k": True, "min_p": 7}, {}),
        ([], {}),
    ],
)
def test_what_holds(tmp_path, said, found):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert published_sampling(tmp_path) == (said if found is None else found)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"temperature": 0.6, "eos_token_id": [1, 2], "do_sample": True}, ()),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "min_new_tokens": None, "bad_words_ids": []}, ()),
        (
            {"num_beams": 4, "suppress_tokens": [7], "max_new_tokens": 64},
            ("num_beams", "max_new_tokens", "suppress_tokens"),
        ),
        ({"_from_model_config": True, "num_beams": 4}, ()),
    ],
)
def test_what_no_answer_follows_is_named(tmp_path, said, names):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert left_out(tmp_path) == names


def test_none_or_a_broken_one_says_nothing(tmp_path):
    assert published_sampling(tmp_path) == {} and left_out(tmp_path) == ()
    (tmp_path / "generation_config.json").write_text("{")
    assert published_sampling(tmp_path) == {}

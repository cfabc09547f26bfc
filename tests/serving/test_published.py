"""What a publisher's generation_config.json says of sampling, read as vLLM reads it."""

import json

import pytest

from modelwright.serving.published import published_sampling


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


def test_none_or_a_broken_one_says_nothing(tmp_path):
    assert published_sampling(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text("{")
    assert published_sampling(tmp_path) == {}

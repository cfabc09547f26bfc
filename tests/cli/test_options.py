"""Options out of their range, and which of two words is the model."""

from pathlib import Path

import pytest

from modelwright import zoo
from modelwright.cli.options import ChatOptions, Sampling, choose_model
from modelwright.errors import RequestError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, got 0"),
        ({"temperature": -0.5}, "--temperature must be 0 or above, got -0.5"),
        ({"temperature": float("nan")}, "--temperature must be 0 or above, got nan"),
        ({"temperature": float("inf")}, "--temperature must be 0 or above, got inf"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "--top-p must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "--top-k must be at least 0, got -1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty must be above 0, got 0.0"),
        ({"seed": -1}, "--seed must be from 0 to 2**63 - 1, got -1"),
        ({"seed": 2**63}, "--seed must be from 0 to 2**63 - 1, got 9223372036854775808"),
    ],
)
def test_sampling_out_of_range_is_refused_with_rule_and_value(setting, message):
    with pytest.raises(RequestError) as caught:
        ChatOptions(sampling=Sampling(**setting)).check()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"chunk_size": 0}, "--chunk-size must be at least 1, got 0"),
        ({"as_json": True}, "--json prints one answer, so it needs a PROMPT"),
        ({"prompt": "  \n"}, "the prompt is empty"),
        ({"prompt": "Where?", "draw": Path("a.png")}, "--draw draws on a picture, so it needs --image"),
    ],
)
def test_options_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(RequestError) as caught:
        ChatOptions(**setting).check()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sampling", "heat"),
    [
        (Sampling(), 0.0),
        (Sampling(top_p=0.9), 1.0),
        (Sampling(top_k=5), 1.0),
        (Sampling(temperature=0.3, top_k=5), 0.3),
        (Sampling(temperature=0.0, top_p=0.9), 0.0),
    ],
)
def test_answers_are_greedy_unless_sampling_is_asked_for(sampling, heat):
    sampling.check()
    assert sampling.heat == heat


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a checkpoint folder ``mine`` in it, and a zoo with ``sparrow``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(zoo, "names", lambda: ["sparrow"])


@pytest.mark.parametrize(
    "model",
    ["sparrow", "vl2-nano", "mine", "org/name", "deepseek-ai/deepseek-vl2-tiny", "./gone", "/gone", "~/gone", "../x"],
)
def test_a_lone_name_path_or_hub_id_is_the_model(folder, model):
    assert choose_model(model, None) == (model, None)


@pytest.mark.parametrize(
    "prompt",
    [
        "How many?",
        "hello",
        "red/green or blue/yellow",
        "a/b/c",
        "Is it a circle/square?",
        "<|grounding|>Locate <|ref|>it<|/ref|>.",
        "x" * 5000,
        "/ is a slash",
    ],
)
def test_other_lone_words_are_the_prompt_for_the_model_in_the_package(folder, prompt):
    assert choose_model(prompt, None) == ("vl2-nano", prompt)


def test_of_two_words_the_first_is_the_model_whatever_it_looks_like(folder):
    assert choose_model("hello", "world") == ("hello", "world")
    assert choose_model(None, None) == ("vl2-nano", None)

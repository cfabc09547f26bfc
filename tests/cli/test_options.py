"""Options out of their range, and which of two words is the model."""

from dataclasses import fields
from pathlib import Path

import pytest

from modelwright import zoo
from modelwright.cli.chat_options import ChatOptions, choose_model
from modelwright.cli.option_names import in_options
from modelwright.cli.options import MOST_RANKS, ChatEngine, EngineOptions, Machine, Sampling
from modelwright.configs.limits import ENGINE, SAMPLING
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.errors import ConfigError, RequestError, UserError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_tokens": -1}, "--max-tokens must be at least 0, got -1"),
        ({"temperature": -0.5}, "--temperature must be at least 0, got -0.5"),
        ({"temperature": float("nan")}, "--temperature must be at least 0, got nan"),
        ({"temperature": float("inf")}, "--temperature must be at most 1e+30, got inf"),
        ({"top_p": -0.1}, "--top-p must be from 0 to 1, got -0.1"),
        ({"top_p": 1.5}, "--top-p must be from 0 to 1, got 1.5"),
        ({"top_k": -2}, "--top-k must be at least -1, got -2"),
        ({"seed": -1}, "--seed must be from 0 to 2**63 - 1, got -1"),
        ({"seed": 2**63}, "--seed must be from 0 to 2**63 - 1, got 9223372036854775808"),
    ],
)
def test_sampling_out_of_range_is_refused_with_rule_and_value(setting, message):
    with pytest.raises(RequestError) as caught:
        ChatOptions(sampling=Sampling(**setting)).check()
    assert in_options(caught.value) == message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampling": Sampling(repetition_penalty=0.0)}, "--repetition-penalty must be above 0, got 0.0"),
        ({"sampling": Sampling(stop=[""])}, "--stop must not be empty"),
        ({"engine": ChatEngine(token_budget=0)}, "--token-budget must be at least 1, got 0"),
        ({"machine": Machine(tensor_parallel=0)}, "--tensor-parallel must be at least 1, got 0"),
        ({"as_json": True}, "--json prints one answer, so it needs a PROMPT"),
        ({"prompt": "  \n"}, "the prompt is empty"),
        ({"prompt": "Where?", "draw": Path("a.png")}, "--draw draws on a picture, so it needs --image"),
    ],
)
def test_options_that_do_not_fit_are_refused(setting, message):
    with pytest.raises(UserError) as caught:
        ChatOptions(**setting).check()
    assert in_options(caught.value) == message


def test_an_error_of_the_library_names_the_option_where_it_is_about_one():
    with pytest.raises(ConfigError) as caught:
        EngineConfig(page_size=0)
    assert in_options(caught.value) == "--page-size must be at least 1, got 0"
    with pytest.raises(RequestError) as refused:
        SamplingParams(top_p=2.0)
    assert in_options(refused.value) == "--top-p must be from 0 to 1, got 2.0"
    assert in_options(ConfigError("of several\n lines")) == "of several lines"


@pytest.mark.parametrize(
    ("group", "checked", "table"), [(Sampling, SamplingParams, SAMPLING), (EngineOptions, EngineConfig, ENGINE)]
)
def test_every_option_is_a_field_with_the_fields_own_range(group, checked, table):
    """What an option refuses and what the library refuses of the same field are the same, at each border."""
    whole = {"token_budget": 2, "max_batch": 1} if checked is EngineConfig else {}
    for field in (field for field in fields(group) if field.name in table):
        limit = table[field.name]
        for value in [*limit.names, "other"] if limit.names else [-1, 0, 1, 2]:
            if (field.name, value) == ("top_k", -1):
                continue  # vLLM's way to write 0, which the command line does not need
            given = float(value) if "float" in str(field.type) else value
            by_option = refuses(lambda asked: group(**asked).check(), {field.name: given})
            assert by_option == refuses(lambda asked: checked(**asked), whole | {field.name: given}), field.name


def refuses(attempt, asked) -> bool:
    try:
        attempt(asked)
    except UserError as error:
        return error.field is not None
    return False


def test_an_old_name_is_told_where_it_was_typed():
    error = RequestError("max_tokens must be at least 0, got -1", field="max_tokens")
    assert in_options(error, ["chat", "--max-new-tokens=-1"]).startswith("--max-new-tokens must")
    assert in_options(error, ["chat", "--max-tokens", "-1"]).startswith("--max-tokens must")


@pytest.mark.parametrize("old", ["--max-new-tokens", "--max-new-tokens=5", "--chunk-size", "--block-size"])
def test_old_names_are_understood_by_every_command_that_has_the_option(run, old):
    words = [old] if "=" in old else [old, 5]
    for command in (("chat", "gone-1"), ("generate", "gone-1", "-i", "x", "-o", "y")):
        assert "'gone-1' is no name" in run(*command, *words).err
        assert old.partition("=")[0] not in run(*command[:1], "--help").out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a checkpoint folder ``mine`` in it, and a zoo with ``sparrow``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(zoo, "names", lambda: ["sparrow"])


@pytest.mark.parametrize(
    "model",
    [
        *("sparrow", "vl2-nano", "mine", "org/name", "deepseek-ai/deepseek-vl2-tiny", "./gone", "/gone", "~/gone"),
        *("../x", "sparow", "Sparrow", "llama-7b", "model.gguf", "checkpoint_500", "llama2", "runs/llama/final", "~"),
    ],
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
        "Why?",
        "3.14",
        "Hello!",
        "well...",
        "llama-7b?",
        "你好",
    ],
)
def test_other_lone_words_are_the_prompt_for_the_model_in_the_package(folder, prompt):
    assert choose_model(prompt, None) == ("vl2-nano", prompt)


def test_of_two_words_the_first_is_the_model_whatever_it_looks_like(folder):
    assert choose_model("hello", "world") == ("hello", "world")
    assert choose_model(None, None) == ("vl2-nano", None)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("bench", "throughput", "vl2-nano", "--requests", 10**9),
            "--requests must be at most 1000000, got 1000000000",
        ),
        (("bench", "latency", "vl2-nano", "--input-len", 10**12), f"--input-len must be at most 1000000, got {10**12}"),
        (
            ("chat", "vl2-nano", "hi", "--tensor-parallel", 5000),
            f"--tensor-parallel must be at most {MOST_RANKS}, got 5000",
        ),
        (("chat", "vl2-nano", "--num-pages", "1e11"), "--num-pages must be a whole number, got '1e11'"),
        (("generate", "vl2-nano", "--block-size=1e9"), "--page-size must be a whole number, got '1e9'"),
        (("chat", "--temperature", "warm"), "--temperature must be a number, got 'warm'"),
        (("complete-image", "-n", "many"), "--samples must be a whole number, got 'many'"),
        (("chat", "vl2-nano", "hi", "--num-pages", 10**11), f"--num-pages must be at most 2147483647, got {10**11}"),
        (("complete-image", "--keep", 0, "-n", 10**6), "--samples must be at most 4096, got 1000000"),
        (("plan", "vl2-nano", "--batch", 10**30), f"--batch must be at most 1099511627776, got {10**30}"),
        (("plan", "vl2-nano", "--context", 10**30), f"--context must be at most 1099511627776, got {10**30}"),
    ],
)
def test_numbers_that_nothing_could_serve_are_refused(run, args, sentence):
    assert run(*args).err == f"modelwright: {sentence}\n"

"""The limits of an engine, and what a Llama's inference fields ask of it."""

from typing import Any

import pytest

from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.errors import ConfigError, RequestError
from modelwright.families.llama.config import LlamaConfig
from tests.llamas import MINDFORMERS, tiny_llama

SERVING = MINDFORMERS | {"use_past": True, "num_blocks": 24}
PROMPT = [5, 9, 33, 7, 12, 5, 9]


def engine_for(**fields: Any) -> Engine:
    """An engine with everything else from the config."""
    model = tiny_llama(base=SERVING, **fields)
    return Engine(model, EngineConfig.from_settings(model.config.engine))


def settings_of(**fields: Any) -> EngineConfig:
    return EngineConfig.from_settings(LlamaConfig(**SERVING | fields).engine)


def answer(engine: Engine, **params: Any) -> tuple[int, ...]:
    """Continue the prompt as the config's sampling fields say, seeded."""
    settings = engine._intake.served.config.sampling
    result = engine.generate([PROMPT], SamplingParams.from_settings(settings, **{"seed": 3} | params))[0]
    return result.completions[0].tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"page_size": 0}, "page_size must be at least 1, got 0"),
        ({"num_pages": 0}, "num_pages must be at least 1, got 0"),
        ({"host_pages": -1}, "host_pages must be at least 0, got -1"),
        ({"max_context": -1}, "max_context must be at least 1, got -1"),
        ({"kept_pictures": 0}, "kept_pictures must be at least 1, got 0"),
        ({"max_batch": 8, "token_budget": 4}, r"token_budget \(4\) must be at least max_batch \(8\)"),
        ({"backend": "graph"}, 'backend must be one of "auto", "eager", "record", "cudagraph"; got "graph"'),
        ({"kv_dtype": "fp8"}, 'kv_dtype must be one of "auto", "int8"; got "fp8"'),
        ({"max_batch": "4"}, "max_batch must be int, got '4'"),
        ({"chunk_prefill": 1}, "chunk_prefill must be bool, got 1"),
    ],
)
def test_a_wrong_limit_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**values)


@pytest.mark.parametrize(
    ("field", "value", "limit", "asked"),
    [
        ("batch_size", 3, "max_batch", 3),
        ("batch_size", 5000, "token_budget", 5000),
        ("seq_length", 48, "max_context", 48),
        ("block_size", 8, "page_size", 8),
        ("num_blocks", 9, "num_pages", 9),
        ("chunk_prefill", True, "chunk_prefill", True),
        ("quant_config", {"quant_method": "int8_kv"}, "kv_dtype", "int8"),
        ("llm_backend", "eager", "backend", "eager"),
        ("llm_backend", "compile", "backend", "record"),
        ("llm_backend", "cudagraph", "backend", "cudagraph"),
    ],
)
def test_an_inference_field_sets_its_limit(field, value, limit, asked):
    assert getattr(settings_of(**{field: value}), limit) == asked
    assert getattr(settings_of(), limit) != asked


def test_changes_win_over_the_fields():
    settings = LlamaConfig(**SERVING).engine
    assert EngineConfig.from_settings(settings, max_batch=7, reuse_prefixes=False).max_batch == 7


def test_a_config_without_a_backend_leaves_it_to_the_engine():
    assert settings_of(llm_backend="").backend == "auto"


def test_a_config_without_a_cache_is_refused():
    with pytest.raises(ConfigError, match="use_past must be True for the engine, which keeps keys in pages; got False"):
        settings_of(use_past=False)


def test_pages_hold_block_size_tokens_and_there_are_num_blocks():
    engine = engine_for(block_size=8, num_blocks=4)
    pool = engine._runner._pools[0]
    assert pool.keys.rows.shape[:2] == (4, 8)
    with pytest.raises(RequestError, match=r"= 40 must be at most the pool \(4 pages of 8 = 32 tokens\)"):
        engine.add_request(PROMPT, SamplingParams(max_tokens=33))


def test_seq_length_caps_prompt_and_new_tokens():
    engine = engine_for(seq_length=12)
    assert len(answer(engine, ignore_eos=True, max_tokens=100)) == 5
    with pytest.raises(RequestError, match="the prompt is 12 tokens long and the model's context holds 12"):
        engine.add_request([5] * 12)


def test_the_rotation_reaches_seq_length_beyond_max_position_embedding():
    engine = engine_for(seq_length=40, max_position_embedding=16)
    assert engine.context == 40
    assert len(answer(engine, ignore_eos=True, max_tokens=100)) == 33


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(ConfigError, match=r"max_context \(65\) must be at most the model's context \(64\)"):
        Engine(tiny_llama(), EngineConfig(max_context=65))


def test_max_decode_length_is_the_total():
    assert len(answer(engine_for(max_decode_length=11), ignore_eos=True)) == 4
    assert len(answer(engine_for(max_decode_length=11), ignore_eos=True, max_tokens=6)) == 6


def test_batch_size_is_how_many_run_at_once():
    for size in (1, 3):
        engine = engine_for(batch_size=size)
        running = []
        for _ in range(4):
            engine.add_request(PROMPT, SamplingParams(max_tokens=3, ignore_eos=True))
        while engine.has_work:
            engine.step()
            assert engine.statistics is not None
            running.append(engine.statistics.step.running)
        assert max(running) == size


def test_chunk_prefill_lets_prompts_share_steps_with_decodes():
    def steps(**fields: Any) -> list[int]:
        engine = engine_for(batch_size=2, **fields)
        engine.add_request(PROMPT, SamplingParams(max_tokens=4, ignore_eos=True))
        engine.step()
        engine.add_request(PROMPT[::-1], SamplingParams(max_tokens=4, ignore_eos=True))
        engine.step()
        assert engine.statistics is not None
        return [engine.statistics.step.tokens]

    assert steps(chunk_prefill=True) == [1 + len(PROMPT)]
    assert steps(chunk_prefill=False) in ([1], [len(PROMPT)])


SAMPLING: dict[str, tuple[Any, Any]] = {  # two values that draw differently
    "do_sample": (True, False),
    "top_k": (1, 40),
    "top_p": (0.01, 1.0),
    "repetition_penalty": (1.0, 5.0),
    "eos_token_id": (2, list(range(2, 64))),
}


@pytest.mark.parametrize("field", SAMPLING)
def test_a_sampling_field_acts(field):
    base = {"top_k": 40} if field != "repetition_penalty" else {"do_sample": False}
    answers = [answer(engine_for(**base | {field: value}), max_tokens=24) for value in SAMPLING[field]]
    assert answers[0] != answers[1]


def test_the_penalty_ignores_padding():
    engine = engine_for(do_sample=False, repetition_penalty=5.0)
    padded = [0, 0, *PROMPT[:3], 0, *PROMPT[3:]]
    params = SamplingParams.from_settings(engine._intake.served.config.sampling, max_tokens=10)
    (bare,), (found,) = engine.generate([PROMPT], params), engine.generate([padded], params)
    assert found.completions == bare.completions
    assert found.prompt == tuple(PROMPT)


def test_int8_keys_are_kept_in_a_quarter_of_the_room():
    plain, small = (
        engine_for(**fields)._runner._pools[0] for fields in ({}, {"quant_config": {"quant_method": "int8_kv"}})
    )
    assert plain.keys.rows.itemsize == 4 * small.keys.rows.itemsize
    assert small.keys.scales is not None

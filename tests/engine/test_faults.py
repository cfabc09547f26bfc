"""One request's fault is its own: whatever it says or brings about ends it with a sentence, and no other notices."""

import asyncio
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.output import FinishReason
from modelwright.engine.params import Guide, SamplingParams
from modelwright.engine.results import Completion
from modelwright.errors import RequestError, RequestFailed
from tests.engine.engines import check_idle, engine_of, greedy
from tests.engine.small_tokenizers import byte_tokenizer
from tests.fakes import GROUPED, MHA, MOE, NOAUX, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama

TOKENIZER = byte_tokenizer()
VOCABULARY = 250
"""Fewer than the tokenizer has tokens, as where a checkpoint's words were cut."""
DAMAGED = 200
"""A token whose embedding is NaN: whatever reads it has no scores."""


def damaged() -> Any:
    model = tiny_llama(base=HUGGING_FACE | {"vocab_size": VOCABULARY, "eos_token_id": 249})
    with torch.no_grad():
        model.model.embed_tokens.weight[DAMAGED] = math.nan
        model.lm_head.weight[DAMAGED] = 0  # and nobody else draws it
    return model


MODEL = damaged()
PROMPTS = [tuple(tokens(length, seed=length).tolist()) for length in (3, 9, 17, 6)]
PROMPT = PROMPTS[0]
RARE = "<tag>"
"""What the tokenizer writes with a token that the model has no score for."""


def texts(**limits: Any) -> Engine:
    return engine_of(MODEL, TOKENIZER, **limits)


class Broken:
    """A guide that raises, or leads nowhere, after so many tokens."""

    def __init__(self, after: int, how: str):
        self.after, self.how = after, how
        self.error = ""

    def allowed(self, given: Any) -> torch.Tensor | None:
        if len(given) >= self.after and self.how == "raises":
            raise KeyError("grammar")
        if len(given) >= self.after and self.how == "nothing":
            return torch.zeros(VOCABULARY, dtype=torch.bool)
        return None

    def ended(self, given: Any) -> bool:
        if len(given) > self.after and self.how == "ended":
            raise IndexError("no such state")
        return False


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "word beyond the vocabulary": (
        {"params": {"bad_words": [RARE]}},
        f"a bad word must be written in tokens below the vocabulary's {VOCABULARY}, and {RARE!r} needs token",
    ),
    "ids beyond": (
        {"params": {"bad_words": [[3, 250]]}},
        "bad_words must name tokens below the vocabulary's 250, got 250",
    ),
    "bias beyond": ({"params": {"logit_bias": {999: 1.0}}}, "logit_bias must name tokens below the vocabulary's 250"),
    "large bias": (
        {"params": {"logit_bias": {3: 1e31}}},
        "logit_bias of token 3 must be a number from -1e+30 to 1e+30, or -inf, got 1e+31",
    ),
    "huge bias": ({"params": {"logit_bias": {3: 10**400}}}, "or -inf, got an int of 1329 bits"),
    "bias that is true": ({"params": {"logit_bias": {3: True}}}, "or -inf, got True"),
    "text in a bias": ({"params": {"logit_bias": {3: "x"}}}, "or -inf, got 'x'"),
    "n": ({"params": {"n": 1_000_000}}, "n must be at most 1024, got 1000000"),
    "top_k": ({"params": {"top_k": 2**63}}, "top_k must be at most 2**63 - 1, got 9223372036854775808"),
    "temperature": ({"params": {"temperature": 10**400}}, "temperature must be at most 2**63 - 1, got an int of 1329"),
    "hot": ({"params": {"temperature": 1e39}}, "temperature must be at most 1e+30, got 1e+39"),
    "penalty": ({"params": {"repetition_penalty": 1e39}}, "repetition_penalty must be at most 1e+30, got 1e+39"),
    "huge seed": ({"params": {"seed": 10**5000}}, "seed must be from 0 to 2**63 - 1, got an int of 16610 bits"),
    "logprobs": ({"params": {"logprobs": 10**9}}, "logprobs must be at most 1000, got 1000000000"),
    "long text": ({"params": {"temperature": "x" * 10**6}}, "temperature must be a finite number, got 'xxx"),
    "stops": ({"params": {"stop": ["abc"] * 4000}}, "stop must hold at most 10000 characters in all, got 12000"),
    "words": ({"params": {"bad_words": [[1]] * 4097}}, "bad_words must be at most 4096, got 4097"),
    "long words": ({"params": {"bad_words": ["x" * 100_001]}}, "bad_words must hold at most 100000 characters or ids"),
    "half a pair": ({"params": {"bad_words": ["\ud800"]}}, "a bad word must be text in UTF-8, got '\\ud800'"),
    "half a stop": ({"params": {"stop": "\udfff"}}, "a stop text must be text in UTF-8, got '\\udfff'"),
    "half a regex": ({"guide": {"regex": "\ud800"}}, "a guide's regex must be text in UTF-8, got '\\ud800'"),
    "no regex": ({"guide": {"regex": "("}}, "the guide's regex cannot be followed: "),
    "no grammar": ({"guide": {"grammar": "start: ("}}, "the guide's grammar cannot be followed: "),
    "no schema": ({"guide": {"json_schema": {"type": "x"}}}, "the guide's json_schema cannot be followed: "),
    "prompt half": ({"prompt": "a\ud800"}, "a prompt must be text in UTF-8, got \\ud800 at character 1"),
    "true ids": ({"prompt": [True, True]}, "got list with True (bool) at place 0"),
    "float ids": ({"prompt": [3, 4.0]}, "got list with 4.0 (float) at place 1"),
    "float array": ({"prompt": np.array([1.5])}, "got ndarray with 1.5 (float) at place 0"),
    "nested ids": ({"prompt": [[3, 4]]}, "got list with [3, 4] (list) at place 0"),
    "huge ids": ({"prompt": [10**30]}, "a prompt's tokens must be at least 0 and below the vocabulary's 250"),
    "ids below": ({"prompt": [-1]}, "a prompt's tokens must be at least 0 and below the vocabulary's 250, got -1"),
    "number": ({"prompt": 5}, "a prompt must be text, token ids or a processor's output, got int"),
    "bytes": ({"prompt": b"abc"}, "a prompt must be text, token ids or a processor's output, got bytes"),
    "nothing": ({"prompt": []}, "a prompt needs at least 1 token"),
    "no ids": ({"prompt": {"attention_mask": [[1]]}}, "a processor's output must hold input_ids, got attention_mask"),
    "ids of None": ({"prompt": {"input_ids": None}}, "a processor's output must hold input_ids, got input_ids"),
    "float tensor": (
        {"prompt": {"input_ids": torch.tensor([[1.0]])}},
        "input_ids of one prompt must hold integers, got float32",
    ),
    "bool tensor": ({"prompt": {"input_ids": [[True]]}}, "input_ids of one prompt must hold integers, got bool"),
    "ragged": ({"prompt": {"input_ids": [[1], [2, 3]]}}, "input_ids of one prompt must be an array of numbers, got"),
    "words as ids": ({"prompt": {"input_ids": ["a"]}}, "input_ids of one prompt must be an array of numbers, got"),
    "mask": (
        {"prompt": {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}},
        "attention_mask must be as long as input_ids (3), got 2",
    ),
    "places": (
        {"prompt": {"input_ids": [[1, 2]], "images_seq_mask": [[False]]}},
        "images_seq_mask must be as long as input_ids (2), got 1",
    ),
    "priority": ({"how": {"priority": math.nan}}, "a request's priority must be an int, got nan (float)"),
    "id": ({"how": {"id": ["x"]}}, "a request's id must be text, got ['x'] (list)"),
    "settings": ({"how": {"params": {"n": 1}}}, "params must be SamplingParams, got {'n': 1} (dict)"),
}


def ask(engine: Engine, asked: dict[str, Any]) -> None:
    fields = dict(asked.get("params", {}))
    if "guide" in asked:
        fields["guide"] = Guide(**asked["guide"])
    engine.add_request(asked.get("prompt", PROMPT), **{"params": SamplingParams(**fields)} | asked.get("how", {}))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_before_work_begins(name):
    asked, sentence = REFUSED[name]
    engine = texts()
    with pytest.raises(RequestError, match=re.escape(sentence)) as refused:
        ask(engine, asked)
    assert len(str(refused.value)) < 1000 and "\n" not in str(refused.value)[:60]
    check_idle(engine)


def fail_while_running(engine: Engine, how: str, after: int, n: int) -> str:
    """A request that is taken and then fails, and its id."""
    if how == "NaN":
        return engine.add_request((*PROMPTS[1], DAMAGED), greedy(6, n=n))
    if how == "stop at NaN":
        return engine.add_request((DAMAGED, *PROMPTS[2]), SamplingParams(max_tokens=9, n=n, seed=4, top_p=0.9))
    id_ = engine.add_request(PROMPTS[1], greedy(12, n=n))
    engine._roster[id_].samples[n - 1].row.guide = Broken(len(PROMPTS[1]) + after, how)
    return id_


SENTENCES = {
    "NaN": "the model's scores of the next token are NaN in float32, so none can be drawn: its weights, or",
    "stop at NaN": "the model's scores of the next token are NaN in float32, so none can be drawn: its weights, or",
    "raises": "the guide failed: KeyError: 'grammar'",
    "nothing": "every token is forbidden here, by the guide, logit_bias, bad_words or min_tokens together",
    "ended": "the output cannot be read: IndexError: no such state",
}
GOOD = [greedy(8), SamplingParams(max_tokens=8, seed=5, temperature=1.3, ignore_eos=True, logit_bias={7: 2.0})]
ALONE = {
    (prompt, i): texts().generate([prompt], params)[0].completions[0].tokens
    for prompt in PROMPTS
    for i, params in enumerate(GOOD)
}
some_good = st.tuples(st.just("good"), st.sampled_from(PROMPTS), st.integers(0, 1))
some_refused = st.tuples(
    st.just("refused"), st.sampled_from([name for name in REFUSED if "guide" not in REFUSED[name][0]])
)
some_failing = st.tuples(st.just("fails"), st.sampled_from([*SENTENCES]), st.integers(0, 4), st.integers(1, 3))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(some_good, some_refused, some_failing), min_size=2, max_size=8),
    st.sampled_from([{}, {"token_budget": 5}, {"num_pages": 12, "host_pages": 4}, {"chunk_prefill": False}]),
    st.integers(0, 3),
)
def test_good_requests_answer_as_alone_and_the_others_end_with_a_sentence(drawn, limits, between):
    engine = texts(**limits)
    good: dict[str, tuple[int, ...]] = {}
    failing: dict[str, tuple[str, int]] = {}
    ended: dict[str, list[Completion]] = {}

    def step() -> None:
        for update in engine.step():
            if update.completion is not None:
                ended.setdefault(update.request, []).append(update.completion)

    for kind, what, *rest in drawn:
        if kind == "good":
            good[engine.add_request(what, GOOD[rest[0]])] = ALONE[what, rest[0]]
        elif kind == "refused":
            with pytest.raises(RequestError):
                ask(engine, REFUSED[what][0])
        else:
            failing[fail_while_running(engine, what, *rest)] = (SENTENCES[what], rest[1])
        for _ in range(between):
            step()
    while engine.has_work:
        step()
    for id_, tokens_ in good.items():
        assert [(one.tokens, one.error) for one in ended[id_]] == [(tokens_, None)]
    for id_, (sentence, n) in failing.items():
        assert len(ended[id_]) == n and any(one.finish_reason is FinishReason.ERROR for one in ended[id_])
        assert all(one.error.startswith(sentence) for one in ended[id_] if one.error is not None)
    check_idle(engine)


def test_generate_raises_once_the_others_are_served():
    engine = texts()
    whole = []
    with pytest.raises(RequestFailed, match=r"prompts\[1\]: the model's scores of the next token are NaN in float32"):
        engine.generate([PROMPT, (DAMAGED,)], greedy(8), lambda update: whole.extend([update.completion or ()]))
    assert [one.tokens for one in whole if one and not one.error] == [ALONE[PROMPT, 0]]
    check_idle(engine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "logit_bias": {3: 1.0}}]
)
def test_scores_that_overflow_name_the_type_and_the_way_out(dtype, sampling):
    model = damaged().to(dtype)
    with torch.no_grad():
        model.model.norm.weight[:] = 1000.0  # so that no sum is small
        model.lm_head.weight[:] = torch.finfo(dtype).max
    wider = {
        torch.float16: "float16 may not hold .* load it in bfloat16 or float32",
        torch.bfloat16: "load it in float32",
    }
    with pytest.raises(RequestFailed, match=rf"are (NaN|infinite) in {str(dtype)[6:]}, .*{wider[dtype]}"):
        engine_of(model).generate([PROMPT], greedy(3, seed=1, **sampling))


def test_minus_infinity_is_a_score_that_is_never_drawn(monkeypatch):
    model = damaged()
    model.lm_head.register_forward_hook(lambda module, given, out: out.index_fill(-1, torch.arange(100), -math.inf))
    for params in (greedy(5), SamplingParams(max_tokens=5, seed=3, ignore_eos=True)):
        (result,) = engine_of(model).generate([PROMPT], params)
        assert len(result.completions[0].tokens) == 5 and min(result.completions[0].tokens) >= 100


@pytest.mark.parametrize("penalty", [1e-300, 1e-35, 1e30])
@pytest.mark.parametrize("how", [{}, {"temperature": 1e30}, {"temperature": 1e-5}, {"top_p": 1e-300}, {"min_p": 1.0}])
def test_the_ends_of_the_ranges_can_be_drawn_with(penalty, how):
    params = SamplingParams(
        **{"max_tokens": 4, "seed": 1, "ignore_eos": True, "repetition_penalty": penalty, "top_k": 2**63 - 1}
        | {"logit_bias": {3: 1e30, 4: -1e30, 5: -math.inf}}
        | how
    )
    (result,) = texts().generate([PROMPT], params)
    assert len(result.completions[0].tokens) == 4 and 5 not in result.completions[0].tokens


def test_pictures_that_are_no_numbers_are_refused():
    model = tiny_vl2()
    batch = vl2_inputs([[(1, 1)]])
    for spoil, sentence in SPOILT.items():
        parts = {name: value.clone() for name, value in batch.items()}
        spoil(parts)
        with pytest.raises(RequestError, match=re.escape(sentence)):
            engine_of(model).add_request(parts)


def _nan(parts: dict[str, Any]) -> None:
    parts["images"][0, 0, 0, 0, 0] = math.nan


def _negative(parts: dict[str, Any]) -> None:
    parts["images_spatial_crop"][0, 0] = torch.tensor([-1, 2])


def _huge(parts: dict[str, Any]) -> None:
    parts["images_spatial_crop"][0, 0] = torch.tensor([2**31, 2**31])


def _float(parts: dict[str, Any]) -> None:
    parts["images_spatial_crop"] = parts["images_spatial_crop"].float()


SPOILT: dict[Callable[[dict[str, Any]], None], str] = {
    _nan: "images must hold finite numbers, and picture 0 does not",
    _negative: "images_spatial_crop must hold pairs of numbers that are at least 0, got [-1, 2] (list)",
    _huge: "image places and its pictures have",
    _float: "images_spatial_crop of one prompt must hold integers, got float32",
}


def test_streams_hear_of_their_own_failure_alone():
    async def main() -> list[Any]:
        async def collect(prompt: Any, params: SamplingParams) -> tuple[int, ...]:
            return tuple([token async for update in serving.stream(prompt, params) for token in update.tokens])

        async with AsyncEngine(texts()) as serving:
            asked = [(PROMPT, greedy(8)), ((DAMAGED,), greedy(8)), ([2.5], greedy(8)), (PROMPTS[1], greedy(8))]
            return await asyncio.gather(*(collect(*each) for each in asked), return_exceptions=True)

    first, failed, refused, last = asyncio.run(main())
    assert (first, last) == (ALONE[PROMPT, 0], ALONE[PROMPTS[1], 0])
    assert isinstance(failed, RequestFailed) and "are NaN in float32" in str(failed)
    assert isinstance(refused, RequestError) and not isinstance(refused, RequestFailed)


def test_integers_in_any_of_their_types_are_ids():
    engine = texts()
    for prompt in ([np.int64(3), np.uint8(4)], np.array([3, 4], np.uint16), torch.tensor([3, 4], dtype=torch.int32)):
        assert engine.generate([prompt], greedy(2))[0].prompt == (3, 4)
    with pytest.raises(RequestError, match=r"with Fraction\(3, 2\)"):
        engine.generate([[Fraction(3, 2)]], greedy(2))


def test_the_ends_are_the_models_and_the_tokenizers():
    model = tiny_llama(base=HUGGING_FACE | {"vocab_size": 300})
    for ends, wanted in ((None, (TOKENIZER.eos_token_id,)), (7, (7, TOKENIZER.eos_token_id))):
        model.generation_config.eos_token_id = ends
        assert Engine(model, tokenizer=TOKENIZER).ends == wanted
    model.generation_config.eos_token_id = [TOKENIZER.eos_token_id, 2]
    assert Engine(model, tokenizer=TOKENIZER).ends == (TOKENIZER.eos_token_id, 2)
    assert Engine(model).ends == (TOKENIZER.eos_token_id, 2)
    model.generation_config.eos_token_id = None
    assert Engine(model).ends == ()


def test_a_bf16_prompts_logprobs_name_its_own_tokens():
    model = tiny_llama(base=HUGGING_FACE | {"vocab_size": 1003}).bfloat16()
    prompt = (259, 513, 777, 1001, 1002)
    (result,) = engine_of(model).generate([prompt], greedy(2, prompt_logprobs=1))
    assert result.prompt_logprobs is not None
    assert [one.token for one in result.prompt_logprobs] == list(prompt[1:])
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    for place, one in enumerate(result.prompt_logprobs):
        assert one.logprob == pytest.approx(wanted[place, prompt[place + 1]].item(), abs=0.05)


V2 = {"latent": MOE, "grouped": GROUPED, "noaux": NOAUX, "mha": MHA}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", V2)
def test_numbers_that_are_none_stay_in_their_own_request_in_every_kind_of_layer(name, dtype):
    model = tiny_v2(base=V2[name]).to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = math.nan
        model.lm_head.weight[63] = 0
    bad = [5, 9, 63, 7, 8, 9, 10]
    good = [[5, 9, 3, 4], [5, 9, 11, 12, 13, 14], [1] * 9]
    limits = {"token_budget": 64, "batch_invariant": True, "reuse_prefixes": True}
    alone = [engine_of(model, **limits).generate([prompt], greedy(6))[0].completions[0].tokens for prompt in good]
    engine = engine_of(model, **limits)
    failing = engine.add_request(bad, greedy(6))
    names = [engine.add_request(prompt, greedy(6)) for prompt in good]
    ended = {}
    while engine.has_work:
        ended |= {update.request: update.completion for update in engine.step() if update.completion is not None}
    assert [ended[name].tokens for name in names] == alone
    assert "are NaN in" in ended[failing].error
    check_idle(engine)


def test_a_guide_that_is_at_its_limit_says_so():
    engine = texts()
    id_ = engine.add_request(PROMPT, greedy(6))
    engine._roster[id_].samples[0].row.guide = guide = Broken(0, "nothing")
    guide.error = "too many expressions\n<non-verbose/>"
    (update,) = engine.step()
    assert update.completion is not None
    assert update.completion.error == "the guide cannot be followed further: too many expressions"

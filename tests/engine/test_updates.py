"""What updates tell beside text: the prompt's log-probabilities, what was found in the cache, times; and no tokens."""

import time
from typing import Any

import pytest
import torch

from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.refusals import LargerThanCache, PromptTooLong
from modelwright.engine.results import Update
from tests.engine.engines import TOLERANCE, check_idle, engine_of, expected, greedy
from tests.engine.small_tokenizers import byte_tokenizer
from tests.engine.test_blame import POISON, Poisoned, poison
from tests.fakes import tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama

MODELS = {"llama": tiny_llama(base=HUGGING_FACE), "v2": tiny_v2()}
MODEL = MODELS["llama"]
PROMPTS = [[token for token in tokens(length, seed=length).tolist() if token != POISON] for length in (19, 26, 11)]


def serve(engine: Engine, asked: list[tuple[Any, SamplingParams]], between: int = 0) -> list[list[Update]]:
    """Every update of each request, in the order in which they came."""
    came: dict[str, list[Update]] = {}

    def step() -> None:
        try:
            updates = engine.step()
        except Poisoned as error:
            updates = engine.recover(error)
        for update in updates:
            came[update.request].append(update)

    for prompt, params in asked:
        came[engine.add_request(prompt, params)] = []
        for _ in range(between):
            step()
    while engine.has_work:
        step()
    check_idle(engine)
    return list(came.values())


@torch.no_grad()
def prompt_scores(model: Any, prompt: list[int]) -> torch.Tensor:
    """The log-probability of each token but the first ``[tokens - 1]``, by one pass over the whole prompt."""
    logits = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def check_prompt(updates: list[Update], model: Any, prompt: list[int]) -> None:
    """The first update alone has the prompt's log-probabilities, each once."""
    first, *others = updates
    assert first.prompt_logprobs is not None and all(update.prompt_logprobs is None for update in others)
    assert [one.token for one in first.prompt_logprobs] == prompt[1:]
    found = torch.tensor([one.logprob for one in first.prompt_logprobs])
    torch.testing.assert_close(found, prompt_scores(model, prompt), atol=TOLERANCE, rtol=0)


LIMITS: dict[str, dict[str, Any]] = {
    "as it comes": {"token_budget": 64},
    "in parts": {"token_budget": 5},
    "taken away in the middle": {"num_pages": 16, "token_budget": 9},
    "taken away and brought back": {"num_pages": 16, "token_budget": 9, "host_pages": 16},
    "whole": {"chunk_prefill": False},
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("family", "limits"), [*(("llama", name) for name in LIMITS), ("v2", "in parts")])
def test_the_first_update_has_the_prompts_logprobs_and_each_of_them_once(family, limits, n):
    model, settings = MODELS[family], LIMITS[limits]
    params = greedy(14, prompt_logprobs=1, n=n, logit_bias={POISON: -100.0})
    asked = [(prompt, params) for prompt in [*PROMPTS, PROMPTS[0]]]  # the last finds pages, and must not use them
    for between in (0, 2):
        engine = engine_of(model, **settings)
        for (prompt, _), updates in zip(asked, serve(engine, asked, between), strict=True):
            check_prompt(updates, model, prompt)
            assert updates[0].cached_tokens == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_prompt_that_is_read_again_after_a_failed_step_is_told_once(late):
    engine = engine_of(MODEL, token_budget=7)
    calls = [0]

    def now_and_then(one: Any) -> bool:
        calls[0] += 1
        return calls[0] % 4 == 3 and len(one.tables) > 1

    raised = poison(engine, now_and_then, late)
    asked = [(prompt, greedy(6, prompt_logprobs=0)) for prompt in PROMPTS]
    for (prompt, _), updates in zip(asked, serve(engine, asked), strict=True):
        check_prompt(updates, MODEL, prompt)
    assert raised[0] > 0


def test_updates_and_results_agree():
    came: list[Update] = []
    params = greedy(4, prompt_logprobs=2, n=2)
    results = engine_of(MODEL).generate(PROMPTS, params, came.append)
    firsts = {update.request: update for update in reversed(came)}
    for result in results:
        assert firsts[result.request].prompt_logprobs == result.prompt_logprobs
    assert all(update.prompt_logprobs is None for update in serve(engine_of(MODEL), [(PROMPTS[0], greedy(3))])[0])


def test_the_first_update_tells_what_was_found():
    prompt, other = PROMPTS[1], [*PROMPTS[1][:13], 3, 5]
    engine = engine_of(MODEL)
    found = [serve(engine, [(asked, greedy(3))])[0] for asked in (prompt, prompt, other)]
    assert [updates[0].cached_tokens for updates in found] == [0, (len(prompt) - 1) // 4 * 4, 12]
    assert all(update.cached_tokens is None for updates in found for update in updates[1:])
    for n in (1, 3):
        assert serve(engine, [(prompt, greedy(3, n=n))])[0][0].cached_tokens == (len(prompt) - 1) // 4 * 4
    assert serve(engine_of(MODEL, reuse_prefixes=False), [(prompt, greedy(2))] * 2)[1][0].cached_tokens == 0
    assert serve(engine, [(prompt, greedy(3, prompt_logprobs=0))])[0][0].cached_tokens == 0  # all of it was computed


def test_what_it_filled_itself_is_not_what_it_found():
    engine = engine_of(MODEL, num_pages=14, token_budget=9)
    preempted = 0
    requests = {engine.add_request(prompt, greedy(20)): None for prompt in PROMPTS[:2]}
    while engine.has_work:
        for update in engine.step():
            requests[update.request] = requests[update.request] or update
        assert engine.statistics is not None
        preempted += engine.statistics.step.preempted
    assert preempted > 0
    assert [update.cached_tokens for update in requests.values() if update is not None] == [0, 0]


def test_pictures_that_are_found_count_with_their_tokens():
    model, batch = tiny_vl2(), vl2_inputs([[(1, 1)]])
    engine = engine_of(model, token_budget=64)
    for _ in range(2):  # the part that sees is looked at for the first time, and what is computed then is not found
        engine.generate([batch], greedy(2))
    found = (batch["input_ids"].shape[1] - 1) // 4 * 4
    assert [serve(engine, [(batch, greedy(2))])[0][0].cached_tokens for _ in range(2)] == [found] * 2


def test_salted_prompts_are_found_by_their_own_kind_alone():
    engine, found = engine_of(MODEL), []
    for salt in ("a", "b", "a", ""):
        engine.add(engine.prepare(PROMPTS[0], greedy(1), salt=salt))
        found += [update.cached_tokens for update in engine.step()] + [up.cached_tokens for up in engine.step()]
    assert found == [0, 0, 16, 0]


def test_times_are_in_their_order():
    engine, before = engine_of(MODEL, max_batch=1, token_budget=8), time.monotonic()
    first, second = serve(engine, [(PROMPTS[1], greedy(5)), (PROMPTS[2], greedy(5))])
    last = before
    for updates in (first, second):
        times = [update.times for update in updates]
        assert all(one is not None for one in times)
        assert len({(one.arrived, one.scheduled, one.prompt_read) for one in times if one is not None}) == 1
        drawn = [moment for one in times if one is not None for moment in one.tokens]
        assert len(drawn) == 5 and drawn == sorted(drawn) and drawn[-1] <= time.monotonic()
        one = times[0]
        assert one is not None and one.scheduled is not None and one.prompt_read is not None
        assert before <= one.arrived <= one.scheduled <= one.prompt_read <= drawn[0] and last <= one.scheduled
        last = drawn[-1]  # the second waited for the first


def test_one_that_was_never_begun_says_so():
    engine = engine_of(MODEL, max_batch=1)
    engine.add_request(PROMPTS[0], greedy(5))
    waiting = engine.add_request(PROMPTS[1], greedy(5, prompt_logprobs=0))
    engine.step()
    (update,) = engine.abort(waiting)
    assert update.times is not None and (update.times.scheduled, update.times.prompt_read) == (None, None)
    assert update.cached_tokens == 0 and update.prompt_logprobs is None and update.completion is not None


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("n", [1, 2])
def test_no_tokens_only_reads_the_prompt(limits, n):
    engine = engine_of(MODEL, byte_tokenizer(), **LIMITS[limits])
    params = SamplingParams(max_tokens=0, prompt_logprobs=1, n=n, logprobs=1)
    beside = (PROMPTS[2], greedy(8))
    found = serve(engine, [(PROMPTS[0], params), beside, (PROMPTS[1], params)])
    for prompt, updates in ((PROMPTS[0], found[0]), (PROMPTS[1], found[2])):
        check_prompt(updates, MODEL, prompt)
        assert [update.index for update in updates] == list(range(n))
        for update in updates:
            done = update.completion
            assert done is not None and (update.tokens, update.text) == ((), "")
            assert (done.tokens, done.text, done.finish_reason, done.logprobs, done.error) == (
                (),
                "",
                "length",
                (),
                None,
            )
            assert update.times is not None and update.times.tokens == () and update.times.prompt_read is not None
    assert tuple(token for update in found[1] for token in update.tokens) == expected(MODEL, beside[0], 8).tokens


def test_a_prompt_that_was_only_read_is_found():
    engine = engine_of(MODEL)
    (result,) = engine.generate([PROMPTS[1]], SamplingParams(max_tokens=0))
    assert (result.completions[0].tokens, result.completions[0].finish_reason) == ((), "length")
    assert result.token_times == ((),)
    ((first, *_),) = serve(engine, [(PROMPTS[1], greedy(3))])
    assert first.cached_tokens == (len(PROMPTS[1]) - 1) // 4 * 4


def test_a_prompt_that_fills_the_context_can_be_read_and_no_longer_one():
    engine = engine_of(MODEL, max_context=19)
    serve(engine, [(PROMPTS[0], SamplingParams(max_tokens=0))])
    with pytest.raises(PromptTooLong, match="19 tokens long and the model's context holds 19") as refused:
        engine.add_request(PROMPTS[0], SamplingParams(max_tokens=1))
    assert (refused.value.tokens, refused.value.context) == (19, 19)
    with pytest.raises(PromptTooLong, match="20 tokens long"):
        engine.add_request([*PROMPTS[0], 3], SamplingParams(max_tokens=0))


def test_what_no_cache_holds_is_refused_by_whoever_prepares_it():
    engine = engine_of(MODEL, num_pages=5)
    with pytest.raises(
        LargerThanCache, match=r"prompt \(19 tokens\) \+ max_tokens \(2\) = 21 must be at most the pool"
    ):
        engine.prepare(PROMPTS[0], greedy(2))
    assert engine.prepare(PROMPTS[0], greedy(1)).largest == engine.cache_tokens == 20

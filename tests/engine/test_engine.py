"""The engine's requests: seeds, several outputs, ends, log-probabilities, guides, priorities, failures and aborts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoTokenizer

from modelwright import zoo
from modelwright.attention import DenseAttention
from modelwright.attention.upcast import UpcastAttention
from modelwright.engine.engine import Engine
from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.output import FinishReason
from modelwright.engine.params import Guide, SamplingParams
from modelwright.engine.results import Completion, Update
from modelwright.errors import RequestError
from modelwright.ops.pages import dequantise_rows, quantise_rows
from modelwright.processing import parse_grounding_report
from tests.engine.engines import check_equal, check_idle, check_served, engine_of, expected, greedy, record, tokens_of
from tests.engine.small_tokenizers import byte_tokenizer, encode
from tests.fakes import MHA, MOE, tiny_v2, tokens
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

TOKENIZER = byte_tokenizer()
MODEL = tiny_llama(base=HUGGING_FACE | {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id})
PROMPT = tuple(encode(TOKENIZER, "The day was"))
OTHERS = [tuple(tokens(length, seed=length).tolist()) for length in (3, 9, 17)]
SAMPLED = SamplingParams(max_tokens=8, temperature=1.5, top_k=30, seed=11, ignore_eos=True)


def texts(**settings: Any) -> Engine:
    return engine_of(MODEL, TOKENIZER, **settings)


def one(engine: Engine, prompt: Any, params: SamplingParams) -> Completion:
    (result,) = engine.generate([prompt], params)
    return result.completions[0]


def drain(engine: Engine) -> list[Update]:
    updates = []
    while engine.has_work:
        updates += engine.step()
    return updates


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(OTHERS), max_size=4), st.integers(4, 20), st.booleans(), st.booleans())
def test_a_seeded_output_is_the_same_whatever_runs_beside_it(others, budget, chunk, first):
    alone = one(texts(), PROMPT, SAMPLED).tokens
    engine = texts(token_budget=budget, chunk_prefill=chunk, num_pages=20)
    prompts = [PROMPT, *others] if first else [*others, PROMPT]
    results = engine.generate(prompts, [SAMPLED if prompt is PROMPT else greedy(5) for prompt in prompts])
    assert tokens_of(results)[0 if first else -1] == alone


def test_a_top_k_of_minus_one_keeps_all_as_zero_does():
    by_one, by_other = (one(texts(), PROMPT, replace(SAMPLED, top_k=k)).tokens for k in (-1, 0))
    assert by_one == by_other != one(texts(), PROMPT, replace(SAMPLED, top_k=1)).tokens


def test_without_a_seed_outputs_differ():
    params = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True)
    engine = texts()
    assert one(engine, PROMPT, params).tokens != one(engine, PROMPT, params).tokens


@pytest.mark.parametrize("batch", [1, 4])
def test_several_outputs_read_the_prompt_once(batch):
    engine = texts(max_batch=batch, token_budget=64, page_size=2, reuse_prefixes=batch == 1)
    params = SamplingParams(max_tokens=3, temperature=1.5, seed=5, n=3, ignore_eos=True)
    engine.add_request(PROMPT, params, id="x")
    computed, found = 0, {}
    while engine.has_work:
        for update in engine.step():
            if update.completion is not None:
                found[update.index] = update.completion
        assert engine.statistics is not None
        computed += engine.statistics.step.tokens
    again = 0 if batch == 4 else 2  # what of the prompt is found in no full page, for those that waited
    assert computed <= len(PROMPT) + 3 * 2 + 2 * again
    assert len({completion.tokens for completion in found.values()}) > 1
    assert sorted(found) == [0, 1, 2]
    alone = one(texts(), PROMPT, SamplingParams(max_tokens=3, temperature=1.5, seed=5, ignore_eos=True))
    assert found[0].tokens == alone.tokens
    check_idle(engine)


def test_updates_are_the_completions_in_pieces():
    engine, pieces = texts(), []
    params = SamplingParams(max_tokens=9, temperature=1.3, seed=2, n=2, logprobs=1, ignore_eos=True)
    results = engine.generate([PROMPT, OTHERS[1]], params, on_update=pieces.append)
    for result in results:
        for completion in result.completions:
            own = [piece for piece in pieces if (piece.request, piece.index) == (result.request, completion.index)]
            assert "".join(piece.text for piece in own) == completion.text
            assert sum((piece.tokens for piece in own), ()) == completion.tokens
            assert sum((piece.logprobs for piece in own), ()) == completion.logprobs
            assert [piece.completion for piece in own[:-1]] == [None] * (len(own) - 1)
            assert own[-1].completion == completion
        assert len(result.token_times[0]) == 9 and sorted(result.token_times[0]) == list(result.token_times[0])


def test_a_stop_text_ends_the_output_wherever_tokens_split_it():
    whole = one(texts(), PROMPT, greedy(12))
    assert whole.finish_reason is FinishReason.LENGTH
    stop = whole.text[4:7]
    first = whole.text.find(stop)
    found = one(texts(), PROMPT, greedy(12, min_tokens=0, ignore_eos=True, stop=stop))
    assert (found.text, found.finish_reason, found.stop_reason) == (whole.text[:first], FinishReason.STOP, stop)
    kept = one(texts(), PROMPT, greedy(12, min_tokens=0, ignore_eos=True, stop=stop, include_stop_str_in_output=True))
    assert kept.text == whole.text[: first + len(stop)]


def test_a_stop_text_that_is_a_special_token_ends_the_output_though_no_text_shows_it():
    """As transformers' ``stop_strings`` do, and where they do: at the token itself."""
    tag = TOKENIZER.convert_tokens_to_ids("<tag>")
    asked = {"temperature": 0, "max_tokens": 8, "min_tokens": 3, "stop": ("never", "<tag>"), "logit_bias": {tag: 1e4}}
    ids = torch.tensor([PROMPT])
    theirs = MODEL.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=TOKENIZER.eos_token_id,
        max_new_tokens=8,
        do_sample=False,
        sequence_bias={(tag,): 1e4},
        stop_strings=["never", "<tag>"],
        tokenizer=TOKENIZER,
    )[0, len(PROMPT) :].tolist()
    found = one(texts(), PROMPT, SamplingParams(**asked | {"min_tokens": 0}))
    assert list(found.tokens) == theirs == [tag]
    assert (found.text, found.finish_reason, found.stop_reason) == ("", FinishReason.STOP, "<tag>")
    assert one(texts(), PROMPT, SamplingParams(**asked)).tokens == (tag,) * 3
    kept = one(texts(), PROMPT, SamplingParams(**asked, include_stop_str_in_output=True))
    shown = one(texts(), PROMPT, SamplingParams(**asked, include_stop_str_in_output=True, skip_special_tokens=False))
    assert (kept.text, shown.text) == ("<tag>", "<tag><tag><tag>")


def test_end_tokens_of_the_model_and_of_the_request():
    whole = one(texts(), PROMPT, greedy(8)).tokens
    found = one(texts(), PROMPT, SamplingParams(temperature=0, max_tokens=8, stop_token_ids=(whole[3],)))
    end = whole.index(whole[3])
    assert (found.tokens, found.finish_reason, found.stop_reason) == (whole[: end + 1], FinishReason.STOP, whole[3])
    ends = one(texts(), PROMPT, SamplingParams(temperature=0, max_tokens=8, eos_token_ids=(whole[3],)))
    assert (ends.tokens, ends.finish_reason, ends.stop_reason) == (whole[: end + 1], FinishReason.STOP, None)


def check_logprobs(found: tuple[TokenLogprobs, ...] | None, logits: Tensor, ids: tuple[int, ...], count: int) -> None:
    """Those of the tokens, and of the best, by the log-softmax of the dense logits before each."""
    assert found is not None and [each.token for each in found] == list(ids)
    wanted = logits.log_softmax(-1)
    for each, row in zip(found, wanted, strict=True):
        assert each.logprob == pytest.approx(row[each.token].item(), abs=1e-4)
        assert each.rank == 1 + int((row > row[each.token] + 1e-6).sum())
        best = row.topk(count)
        assert [logprob for _, logprob in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_changed_weights_give_their_own_answers_once_prefixes_are_forgotten():
    model = tiny_llama(base=HUGGING_FACE)
    engine = engine_of(model)
    before = engine.generate([OTHERS[2]], greedy(6))[0].completions[0].tokens
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    engine.forget_prefixes()
    after = engine.generate([OTHERS[2]], greedy(6))[0].completions[0].tokens
    assert after == expected(model, OTHERS[2], 6).tokens != before
    assert engine._scheduler.pool.usage.pages_found == 0
    check_idle(engine)


KEPT = {"token_budget": 4, "num_pages": 8, "host_pages": 16}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "limits",
    [{"token_budget": 64}, {"token_budget": 4}, {"token_budget": 4, "num_pages": 8}, {"max_batch": 1}, KEPT],
    ids=["whole", "in parts", "preempted", "one at a time", "preempted and kept"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_logprobs_of_prompt_and_outputs_are_those_of_the_dense_pass(n, limits):
    prompts = [PROMPT, OTHERS[1], OTHERS[2][:5], PROMPT]
    params = SamplingParams(max_tokens=5, temperature=1.2, seed=4, n=n, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    engine = texts(**limits)
    for prompt, result in zip(prompts, engine.generate(prompts, params), strict=True):
        for completion in result.completions:
            ids = torch.tensor([prompt + completion.tokens])
            with torch.no_grad():
                logits = MODEL(ids).logits[0]
            check_logprobs(result.prompt_logprobs, logits[: len(prompt) - 1], prompt[1:], 2)
            check_logprobs(completion.logprobs, logits[len(prompt) - 1 : -1], completion.tokens, 3)
    check_idle(engine)


def test_logprobs_that_nobody_asked_for_are_none():
    (result,) = texts().generate([PROMPT], greedy(2))
    assert result.prompt_logprobs is None and result.completions[0].logprobs is None


def test_a_guide_leads_each_request_to_its_end():
    engine = texts()
    guided = SamplingParams(max_tokens=30, temperature=1.0, seed=1, guide=Guide(regex="[0-9]{3}(,[a-f])?"), n=2)
    free = greedy(6)
    found, beside = engine.generate([PROMPT, OTHERS[0]], [guided, free])
    for completion in found.completions:
        assert completion.finish_reason is FinishReason.STOP
        assert len(completion.text) in (3, 5) and completion.text[:3].isdigit()
    assert beside.completions[0].tokens == one(texts(), OTHERS[0], free).tokens
    check_idle(engine)


def test_boxes_come_out_well_formed_and_the_rest_is_free():
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))
    engine = engine_of(tiny_v2(vocab_size=len(tokenizer)), tokenizer, num_pages=128)
    opened = tokenizer.encode("<|ref|>cat<|/ref|><|det|>", add_special_tokens=False)
    close = tokenizer.convert_tokens_to_ids("<|/det|>")
    brackets = tokenizer.encode("]", add_special_tokens=False) + tokenizer.encode("]]", add_special_tokens=False)
    soon = dict.fromkeys([close, *brackets], 9.0)
    guided = SamplingParams(seed=1, guide=Guide(boxes=True), logit_bias=soon, stop_token_ids=(close,), n=3)
    (result,) = engine.generate([opened], guided)
    for completion in result.completions:
        assert completion.stop_reason == close
        report = parse_grounding_report(tokenizer.decode([*opened, *completion.tokens]), (999, 999))
        assert report.skipped == [] and len(report.groundings) == 1
    check_idle(engine)


def test_guides_stop_texts_and_text_need_a_tokenizer():
    engine = engine_of(MODEL)
    for params, message in (
        (SamplingParams(guide=Guide(regex="a")), "a guide needs a tokenizer, and the engine has none"),
        (SamplingParams(stop="a"), r"stop texts need a tokenizer, and the engine has none; got \['a'\]"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.add_request(PROMPT, params)
    assert one(engine, PROMPT, greedy(3)).text == ""
    check_idle(engine)


def test_a_better_priority_goes_first():
    engine = texts(max_batch=1)
    for name, priority in (("late", 5), ("soon", 0), ("first", -5)):
        engine.add_request(PROMPT, greedy(2), id=name, priority=priority)
    ended = [update.request for update in drain(engine) if update.completion is not None]
    assert ended == ["first", "soon", "late"]


REFUSED: list[tuple[Any, SamplingParams, str]] = [
    ([], greedy(1), "a prompt needs at least 1 token, got 0"),
    ([5, 300], greedy(1), "a prompt's tokens must be at least 0 and below the vocabulary's 258, got 300"),
    ([5, -1], greedy(1), "a prompt's tokens must be at least 0 and below the vocabulary's 258, got -1"),
    ([5] * 64, greedy(1), "the prompt is 64 tokens long and the model's context holds 64"),
    (PROMPT, greedy(1, logit_bias={258: 1.0}), "logit_bias must name tokens below the vocabulary's 258, got 258"),
]


@pytest.mark.parametrize(("prompt", "params", "message"), REFUSED)
def test_a_request_that_cannot_be_served_takes_none_of_the_others_along(prompt, params, message):
    engine = texts()
    with pytest.raises(RequestError, match=message):
        engine.generate([PROMPT, prompt], [greedy(2), params])
    check_idle(engine)


def test_calls_that_make_no_sense_are_refused():
    engine = texts()
    with pytest.raises(RequestError, match="generate takes a list of prompts, got one str"):
        engine.generate("hello")
    with pytest.raises(RequestError, match="there must be one SamplingParams for each prompt, got 1 for 2"):
        engine.generate([PROMPT, PROMPT], [greedy(1)])
    engine.add_request(PROMPT, id="a")
    with pytest.raises(RequestError, match="a request needs an id of its own, 'a' is being served"):
        engine.add_request(PROMPT, id="a")
    engine.abort("a")
    assert engine.step() == [] and engine.abort("a") == [] and not engine.serves("a")
    check_idle(engine)


def test_names_that_callers_took_are_not_given_again():
    engine = texts()
    engine.add_request(PROMPT, id="request-0")
    assert engine.add_request(PROMPT) == "request-1"


def test_an_abort_hands_out_what_there_is():
    engine = texts()
    engine.add_request(PROMPT, greedy(9, n=2), id="a")
    pieces = engine.step() + engine.step()
    ended = engine.abort("a")
    assert [update.index for update in ended] == [0, 1]
    for update in ended:
        assert update.completion is not None
        assert update.completion.finish_reason is FinishReason.ABORT
        assert update.completion.tokens == sum((p.tokens for p in pieces if p.index == update.index), ())
    check_idle(engine)


def test_a_model_that_fails_leaves_the_engine_working(monkeypatch):
    engine = texts(token_budget=4)
    wanted = expected(MODEL, PROMPT, 6)
    engine.add_request(PROMPT, greedy(6), id="a")
    engine.step()
    monkeypatch.setitem(vars(MODEL.model.norm), "forward", lambda x: 1 / 0)  # pytest 8 undoes no setattr of it
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            engine.step()
    with pytest.raises(ZeroDivisionError):
        engine.generate([OTHERS[0]], greedy(2))
    monkeypatch.undo()
    found = [update.completion for update in drain(engine) if update.completion is not None]
    assert [completion.tokens for completion in found] == [wanted.tokens]
    check_idle(engine)


def test_statistics_tell_of_the_last_step():
    engine = texts(token_budget=64)
    assert engine.statistics is None
    engine.generate([PROMPT], greedy(1))
    engine.generate([PROMPT, OTHERS[0]], greedy(3))
    assert engine.statistics is not None
    step = engine.statistics.step
    assert (step.running, step.waiting, step.tokens) == (2, 0, 2)
    assert step.hit_rate > 0 and engine.statistics.tokens_per_second > 0


def test_a_picture_of_tokens_is_completed_to_its_last_pixel():
    model = tiny_imagegpt()
    prompt = [16, *colours(20).tolist()]
    engine = engine_of(model)
    (result,) = engine.generate([prompt], SamplingParams(temperature=0.0))
    assert len(prompt) + len(result.completions[0].tokens) == model.config.n_positions + 1
    assert result.completions[0].tokens == expected(model, prompt, 4).tokens
    with pytest.raises(RequestError, match="logit_bias must name tokens below the vocabulary's 16, got 16"):
        engine.add_request(prompt, greedy(1, logit_bias={16: 1.0}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upcast", [False, True])
def test_attention_is_upcast_where_the_config_asks(dtype, upcast):
    """Both ways agree with the dense pass as far as 8 or 11 bits go; the backend says which way it is."""
    model = tiny_imagegpt(reorder_and_upcast_attn=upcast).to(dtype)
    engine = engine_of(model)
    recorded, prompt = record(engine), [16, *colours(12).tolist()]
    used = []
    attention = engine._runner._attention
    engine._runner._attention = lambda chunks: used.append(attention(chunks)) or used[-1]  # type: ignore[method-assign]
    (result,) = engine.generate([prompt], greedy(1))
    assert {isinstance(each, UpcastAttention) for each in used} == {upcast}
    within = 16 * torch.finfo(dtype).eps
    wanted = expected(model, prompt, 1).logits
    torch.testing.assert_close(recorded.drawn[result.request][0], wanted[0], atol=within, rtol=within)


class Int8Past:
    """Keys and values as int8 pages hold them; a prompt read at once attends to its own before they are rounded."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, ...]] = {}

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        rounded = tuple(dequantise_rows(*quantise_rows(x), x.dtype) for x in (k, v))
        if layer not in self.kept:
            self.kept[layer] = rounded
            return k, v
        both = zip(self.kept[layer], rounded, strict=True)
        self.kept[layer] = tuple(torch.cat(pair, dim=2) for pair in both)
        return self.kept[layer][0], self.kept[layer][1]


@pytest.mark.parametrize(
    "build",
    [lambda: tiny_v2(base=MOE), lambda: tiny_v2(base=MHA), lambda: tiny_llama(base=HUGGING_FACE), tiny_imagegpt],
    ids=["mla", "mha", "llama", "imagegpt"],
)
def test_int8_pages_round_keys_and_values_and_nothing_else(build):
    """The rounding is known, half of a 127th of each vector's largest number, so the rest is exact as ever."""
    model, new = build(), 6
    prompt = colours(9).tolist()
    engine = engine_of(model, kv_dtype="int8", token_budget=64)
    recorded = record(engine)
    (result,) = engine.generate([prompt], greedy(new))
    found, past, ids = result.completions[0].tokens, Int8Past(), prompt
    exact = expected(model, [*prompt, *found[:-1]], 1).logits[0]
    for number in range(new):
        at = len(prompt) + number - len(ids)
        with torch.no_grad():
            logits = model(
                torch.tensor([ids]),
                position_ids=torch.arange(at, at + len(ids))[None],
                attention=DenseAttention(cache=past, past=at),
                use_cache=False,
            ).logits[0, -1]
        torch.testing.assert_close(recorded.drawn[result.request][number], logits, atol=1e-4, rtol=0)
        ids = [found[number]]
    assert 0 < (recorded.drawn[result.request][new - 1] - exact).abs().max() < 0.02 * exact.std()


def test_half_precision_agrees_with_the_dense_pass_to_its_bits():
    model = tiny_llama(base=HUGGING_FACE).bfloat16()
    engine = engine_of(model, token_budget=7)
    recorded = record(engine)
    for prompt, result in zip(OTHERS, engine.generate(OTHERS, greedy(1)), strict=True):
        wanted = expected(model, prompt, 1).logits[0]
        torch.testing.assert_close(recorded.drawn[result.request][0], wanted, atol=0.1, rtol=0)


def test_a_prefix_that_others_read_is_not_computed_again():
    engine = texts(token_budget=64)
    shared = OTHERS[2]
    engine.generate([shared], greedy(1))
    engine.add_request((*shared[:16], 5, 6), greedy(1))
    engine.step()
    assert engine.statistics is not None and engine.statistics.step.tokens == 2
    check_served(MODEL, [shared, shared, (*shared[:12], 9), shared[:8]], token_budget=64)


def test_equal_logits_however_many_share_the_pages():
    engine = texts(token_budget=64)
    recorded = record(engine)
    results = engine.generate([PROMPT] * 4, greedy(5))
    wanted = expected(MODEL, PROMPT, 5)
    for result in results:
        check_equal(result.completions[0].tokens, recorded.drawn[result.request], wanted, 1e-4)

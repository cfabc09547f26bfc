"""The sampler as a whole: transformers' distribution, the same draws in any batch, nothing forbidden drawn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modelwright.engine.noise import gumbel, sample_key, streams_of
from modelwright.engine.params import SamplingParams
from modelwright.engine.sample_row import SampleRow
from modelwright.engine.sampling import NO_TOKEN, sample

VOCABULARY = 48
DRAWS = 20_000

some_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.sampled_from([None, {3: -float("inf"), 4: 2.0}]),
    min_tokens=st.sampled_from([0, 9]),
)


def new_row(params: SamplingParams, seed: int = 0, output: tuple[int, ...] = (), **more) -> SampleRow:
    return SampleRow(params, [1, 2, *output], 2, key=sample_key(seed), ends=frozenset({0}), **more)


def logits_of(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_rows_are_the_best_tokens_and_logits_stay():
    logits = logits_of(0, 5).bfloat16()
    before = logits.clone()
    sampled = sample(logits, [new_row(SamplingParams(temperature=0))] * 5)
    assert sampled.tokens.dtype == torch.int64 and torch.equal(sampled.tokens, logits.argmax(-1))
    assert torch.equal(logits, before) and sampled.logprobs == (None,) * 5


def test_no_rows_draw_nothing():
    assert sample(torch.zeros(0, VOCABULARY), []).tokens.tolist() == []


@settings(max_examples=30)
@given(st.lists(st.tuples(some_params, st.integers(0, 99)), min_size=1, max_size=6), st.integers(0, 99), st.data())
def test_a_row_draws_the_same_in_any_batch_and_order(asked, seed, data):
    logits = logits_of(seed, len(asked))
    rows = [new_row(params, key, output=(5, 6, 5)) for params, key in asked]
    together = sample(logits, rows).tokens
    order = data.draw(st.permutations(range(len(rows))))
    assert torch.equal(sample(logits[order], [rows[i] for i in order]).tokens, together[order])
    for i, row in enumerate(rows):
        assert sample(logits[i : i + 1], [row]).tokens == together[i]


def test_the_draw_depends_on_the_position_and_not_on_the_calls_before():
    logits = logits_of(1, 1).expand(200, -1)
    outputs = [tuple([7] * position) for position in range(200)]
    first = sample(logits, [new_row(SamplingParams(), 3, output) for output in outputs]).tokens
    again = sample(logits.flip(0), [new_row(SamplingParams(), 3, output) for output in reversed(outputs)]).tokens
    assert torch.equal(first, again.flip(0))
    assert len(set(first.tolist())) > 10
    other_seed = sample(logits, [new_row(SamplingParams(), 4, output) for output in outputs]).tokens
    assert not torch.equal(first, other_seed)


def by_transformers(logits: torch.Tensor, asked: SamplingParams, tokens: list[int]) -> torch.Tensor:
    """The scores that `generate()` draws from."""
    processors = LogitsProcessorList()
    if asked.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
    processors.append(TemperatureLogitsWarper(float(asked.temperature)))
    if asked.top_k:
        processors.append(TopKLogitsWarper(asked.top_k))
    if asked.top_p < 1:
        processors.append(TopPLogitsWarper(asked.top_p))
    if asked.min_p:
        processors.append(MinPLogitsWarper(asked.min_p))
    return processors(torch.tensor([tokens]), logits)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(
    st.lists(
        st.builds(
            SamplingParams,
            temperature=st.floats(0.05, 5),
            top_k=st.integers(0, 50),
            top_p=st.floats(0, 1),
            min_p=st.sampled_from([0.0, 0.01, 0.3]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 999),
)
def test_rows_draw_from_transformers_scores_bit_for_bit(asked, seed):
    """The best of transformers' scores with our noise is the token, in a vocabulary that windows do not cover."""
    logits = torch.randn(len(asked), 600, generator=torch.Generator().manual_seed(seed)) * 3
    rows = [new_row(params, seed + i, output=(5, 6)) for i, params in enumerate(asked)]
    noise = gumbel(streams_of([(row.key, row.position) for row in rows]), torch.arange(600))
    expected = [
        (by_transformers(logits[i : i + 1], row.params, list(row.tokens))[0] + noise[i]).argmax().item()
        for i, row in enumerate(rows)
    ]
    assert sample(logits, rows).tokens.tolist() == expected


def deviation(counts: torch.Tensor, due: torch.Tensor) -> float:
    """Pearson's chi-square as standard deviations of a normal (Wilson and Hilferty 1931): above 3.1 once in 1000.

    Tokens that are due fewer than five times are counted together.
    """
    rare = due < 5
    seen, expected = (
        torch.cat([counts[~rare], counts[rare].sum()[None]]),
        torch.cat([due[~rare], due[rare].sum()[None]]),
    )
    seen, expected = seen[expected > 0], expected[expected > 0]
    freedom = len(seen) - 1
    statistic = ((seen - expected) ** 2 / expected).sum().item()
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "asked",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=12),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(min_p=0.05, repetition_penalty=1.3),
        SamplingParams(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    ],
    ids=["free", "top_k", "top_p", "min_p", "all"],
)
def test_twenty_thousand_draws_have_the_distribution_of_transformers(asked):
    logits = logits_of(7, 1)
    expected = by_transformers(logits, asked, [1, 2])[0].double().softmax(-1)
    rows = [new_row(asked, draw) for draw in range(DRAWS)]
    drawn = torch.cat([sample(logits.expand(1000, -1), rows[at : at + 1000]).tokens for at in range(0, DRAWS, 1000)])
    counts = drawn.bincount(minlength=VOCABULARY)
    assert counts[expected == 0].sum() == 0
    assert deviation(counts, expected * DRAWS) < 3.1


def test_the_positions_of_one_output_draw_from_the_same_distribution():
    logits = logits_of(7, 1)
    rows = [SampleRow(SamplingParams(), range(position), 0, key=sample_key(5)) for position in range(2000)]
    counts = sample(logits.expand(len(rows), -1), rows).tokens.bincount(minlength=VOCABULARY)
    assert deviation(counts, logits[0].double().softmax(-1) * len(rows)) < 3.1


@settings(max_examples=30)
@given(some_params, st.integers(0, 10**6), st.sets(st.integers(0, VOCABULARY - 1), min_size=1))
def test_forbidden_tokens_are_never_drawn(params, seed, allowed):
    bias = {id_: -float("inf") for id_ in range(VOCABULARY) if id_ not in allowed}
    asked = SamplingParams(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, logit_bias=bias)
    rows = [new_row(asked, seed + i) for i in range(8)]
    assert set(sample(logits_of(seed, 8), rows).tokens.tolist()) <= allowed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("spoilt", [-float("inf"), float("nan")])
def test_where_nothing_can_be_drawn_there_is_no_token_and_others_go_on(temperature, top_k, spoilt):
    logits = logits_of(2, 3)
    rows = [new_row(SamplingParams(temperature=temperature, top_k=top_k, logprobs=1), i) for i in range(3)]
    whole = sample(logits, rows).tokens.tolist()
    logits[1] = spoilt
    sampled = sample(logits, rows)
    assert sampled.tokens.tolist() == [whole[0], NO_TOKEN, whole[2]]
    assert [found is None for found in sampled.logprobs] == [False, True, False]


def test_logprobs_are_the_models_own_for_rows_that_ask():
    logits = logits_of(9, 3)
    rows = [
        new_row(SamplingParams(logprobs=2, temperature=0, repetition_penalty=5.0, logit_bias={9: 50.0})),
        new_row(SamplingParams()),
        new_row(SamplingParams(logprobs=0), seed=2),
    ]
    sampled = sample(logits, rows)
    raw = logits.log_softmax(-1)
    first, none, last = sampled.logprobs
    assert none is None and first is not None and last is not None
    assert first.token == 9 == sampled.tokens[0] and first.logprob == pytest.approx(raw[0, 9].item(), abs=1e-6)
    assert [id_ for id_, _ in first.top] == raw[0].topk(2).indices.tolist()
    assert last.top == () and last.token == sampled.tokens[2]


def test_a_large_vocabulary_draws_the_same_alone_and_among_free_and_greedy_rows():
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1)) * 3
    params = [{"top_k": 50}, {}, {"top_p": 0.9, "temperature": 0.8}, {"temperature": 0}]
    rows = [new_row(SamplingParams(**given), seed) for seed, given in enumerate(params)]
    together = sample(logits, rows).tokens.tolist()
    assert together == [sample(logits[i : i + 1], [rows[i]]).tokens.item() for i in range(4)]

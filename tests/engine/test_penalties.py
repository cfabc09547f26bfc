"""Penalties and prohibitions against transformers' processors; rows that ask for nothing stay as they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from modelwright.engine.params import SamplingParams
from modelwright.engine.penalties import adjust
from modelwright.engine.sample_row import SampleRow

VOCABULARY = 30
ids = st.integers(0, VOCABULARY - 1)


def row(params: SamplingParams, prompt: list[int], output: list[int], **more) -> SampleRow:
    return SampleRow(params, prompt + output, len(prompt), **more)


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def by_transformers(logits: torch.Tensor, asked: SampleRow) -> torch.Tensor:
    """What `generate()` does with one row before it samples, in its order."""
    params, end_ids = asked.params, sorted(asked.ends)
    processors = LogitsProcessorList()
    if params.logit_bias:
        processors.append(SequenceBiasLogitsProcessor({(id_,): float(b) for id_, b in params.logit_bias.items()}))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if asked.bad_words:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in asked.bad_words]))
    if params.min_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(asked.prompt_length, params.min_tokens, end_ids))
    return processors(torch.tensor([asked.tokens]), logits)  # type: ignore[arg-type]


def test_rows_that_ask_for_nothing_are_not_even_copied():
    logits = logits_of(2).bfloat16()
    assert adjust(logits, [row(SamplingParams(top_k=3), [1], [2]), row(SamplingParams(), [1], [])]) is logits


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    bias=st.dictionaries(ids, st.floats(-5, 5, width=32), max_size=3),
    words=st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=4, unique=True),
    minimum=st.integers(0, 4),
    prompt=st.lists(ids, min_size=1, max_size=8),
    output=st.lists(ids, max_size=8),
)
def test_a_row_is_adjusted_as_transformers_does_bit_for_bit(seed, penalty, bias, words, minimum, prompt, output):
    params = SamplingParams(repetition_penalty=penalty, logit_bias=bias, min_tokens=minimum)
    asked = row(params, prompt, output, ends=frozenset({3, 5}), bad_words=tuple(words))
    plain = row(SamplingParams(), prompt, output)
    logits = logits_of(3, seed)
    adjusted = adjust(logits, [plain, asked, plain])
    assert torch.equal(adjusted[1:2], by_transformers(logits[1:2], asked))
    assert torch.equal(adjusted[::2], logits[::2])


def test_the_logits_handed_in_are_not_changed():
    logits = logits_of(1)
    before = logits.clone()
    adjust(logits, [row(SamplingParams(repetition_penalty=2.0, logit_bias={1: 4.0}), [1, 2], [3])])
    assert torch.equal(logits, before)


def test_presence_and_frequency_count_the_output_only():
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    logits = torch.zeros(1, VOCABULARY)
    adjusted = adjust(logits, [row(params, [7, 7, 8], [8, 9, 9, 9])])[0]
    assert adjusted[7] == 0 and adjusted[8] == -0.75 and adjusted[9] == -1.25
    assert adjusted.count_nonzero() == 2


@settings(max_examples=40)
@given(st.lists(ids, min_size=1, max_size=5), st.lists(ids, max_size=12))
def test_a_history_read_step_by_step_is_a_history_read_at_once(prompt, output):
    params = SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0)
    growing = row(params, prompt, [])
    logits = logits_of(1)
    for token in output:
        adjust(logits, [growing])
        growing.tokens.append(token)  # type: ignore[attr-defined]
    assert torch.equal(adjust(logits, [growing]), adjust(logits, [row(params, prompt, output)]))


def test_prompt_ids_without_a_score_are_passed_over():
    """A picture's placeholder may lie beyond the vocabulary that the model scores, or below zero."""
    params = SamplingParams(repetition_penalty=2.0)
    odd, plain = row(params, [-200, 5, VOCABULARY + 3], []), row(params, [5], [])
    logits = logits_of(1)
    assert torch.equal(adjust(logits, [odd]), adjust(logits, [plain]))


def test_a_bad_word_is_forbidden_where_it_would_be_complete():
    word = (4, 5, 6)
    for tokens, forbidden in [([4, 5], True), ([9, 4, 5], True), ([5, 5], False), ([5], False), ([4, 5, 9], False)]:
        adjusted = adjust(logits_of(1), [row(SamplingParams(), tokens[:1], tokens[1:], bad_words=(word,))])
        assert (adjusted[0, 6] == -torch.inf) == forbidden


@pytest.mark.parametrize(("length", "forbidden"), [(0, True), (2, True), (3, False), (4, False)])
def test_ends_are_forbidden_until_there_are_enough_tokens(length, forbidden):
    params = SamplingParams(min_tokens=3)
    ends = frozenset({2, 4, VOCABULARY + 1})
    adjusted = adjust(logits_of(1), [row(params, [1], [8] * length, ends=ends)])
    assert adjusted[0, [2, 4]].eq(-torch.inf).tolist() == [forbidden] * 2
    assert torch.isfinite(adjusted[0]).sum() == VOCABULARY - 2 * forbidden


class Only:
    """A guide that allows the same ids at every step."""

    def __init__(self, *ids: int, size: int = VOCABULARY):
        self.mask = torch.zeros(size, dtype=torch.bool)
        self.mask[list(ids)] = True

    def allowed(self, tokens):
        return self.mask

    def ended(self, tokens):
        return False


@pytest.mark.parametrize("size", [10, VOCABULARY, VOCABULARY + 9])
def test_a_guide_leaves_only_what_it_allows_however_long_its_mask(size):
    guided, free = row(SamplingParams(), [1], [], guide=Only(2, 8, size=size)), row(SamplingParams(), [1], [])
    logits = logits_of(2)
    adjusted = adjust(logits, [guided, free])
    assert torch.isfinite(adjusted[0]).nonzero()[:, 0].tolist() == [2, 8]
    assert torch.equal(adjusted[0, [2, 8]], logits[0, [2, 8]]) and torch.equal(adjusted[1], logits[1])

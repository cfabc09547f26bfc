"""PagedAttention: whatever the batch, the pages and the chunks, each sequence gets what a dense pass gives it alone."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelwright.attention import DenseAttention, PagedAttention, PagedBatch, PagePool

HEADS, KV_HEADS, K_DIM, V_DIM = 4, 2, 8, 6
NOPE, ROPE, VALUE, RANK = 4, 2, 3, 16
SCALE = 0.4


@dataclass(frozen=True)
class Story:
    """Some sequences cut into chunks, steps that run some of them, and scattered pages."""

    lengths: list[int]
    page_size: int
    tables: list[list[int]]
    pages: int
    steps: list[list[tuple[int, int, int]]]  # each: (sequence, start, count), every sequence in order and in full


@st.composite
def stories(draw) -> Story:
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    page_size = draw(st.integers(1, 5))
    needed = [-(-length // page_size) for length in lengths]
    spare = draw(st.integers(0, 3))
    order = draw(st.permutations(range(sum(needed) + spare)))
    tables = [[order.pop() for _ in range(count)] for count in needed]
    done, steps = [0] * len(lengths), []
    while done != lengths:
        step = []
        for i, length in enumerate(lengths):
            count = draw(st.sampled_from([14, 1, 1, 5, 2, 0]))
            if count := min(count, length - done[i]):
                step.append((i, done[i], count))
                done[i] += count
        steps += [draw(st.permutations(step))] if step else []
    return Story(lengths, page_size, tables, sum(needed) + spare, steps)


def batch_of(story: Story, step: list[tuple[int, int, int]]) -> PagedBatch:
    counts, contexts = [count for _, _, count in step], [start + count for _, start, count in step]
    return PagedBatch.of(counts, contexts, [story.tables[i] for i, _, _ in step], story.page_size)


def poison(pool: PagePool) -> PagePool:
    """NaN in all that was not written: reading any of it shows."""
    for pages in (pool.keys, pool.values):
        (pages.rows if pages.scales is None else pages.scales).fill_(torch.nan)
    return pool


def packed(story: Story, step, rows: list[Tensor]) -> Tensor:
    """The step's tokens ``[1, ..., tokens, width]`` out of each sequence's ``[..., length, width]``."""
    return torch.cat([rows[i].narrow(-2, start, count) for i, start, count in step], dim=-2)[None]


def collected(story: Story, outputs: list[Tensor]) -> list[Tensor]:
    """Each sequence's ``[heads, length, width]`` from what the steps gave."""
    pieces: list[list[Tensor]] = [[] for _ in story.lengths]
    for step, out in zip(story.steps, outputs, strict=True):
        for (i, _, _), part in zip(step, out[0].split([count for _, _, count in step], dim=1), strict=True):
            pieces[i].append(part)
    return [torch.cat(part, dim=1) for part in pieces]


def grouped_tokens(story: Story) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    sizes = ((HEADS, K_DIM), (KV_HEADS, K_DIM), (KV_HEADS, V_DIM))
    return tuple([torch.randn(heads, length, dim) for length in story.lengths] for heads, dim in sizes)


def run_grouped(story: Story, tokens, dtype: torch.dtype) -> list[Tensor]:
    """All steps through two layers, the second of which sees the queries negated."""
    shape = (story.pages, story.page_size, KV_HEADS, K_DIM, V_DIM, dtype)
    pools = [poison(PagePool.grouped(*shape)) for _ in range(2)]
    outputs = []
    for step in story.steps:
        attention = PagedAttention(pools, batch_of(story, step))
        q, k, v = (packed(story, step, part) for part in tokens)
        attention.attend(0, -q, -k, v, scale=SCALE)
        outputs.append(attention.attend(1, q, k, v, scale=SCALE))
    return collected(story, outputs)


@settings(max_examples=60, deadline=None)
@given(stories(), st.integers(0, 2**16))
def test_grouped_heads_equal_dense(story, seed):
    torch.manual_seed(seed)
    tokens = grouped_tokens(story)
    for got, *qkv in zip(run_grouped(story, tokens, torch.float32), *tokens, strict=True):
        expected = DenseAttention().attend(0, *(part[None] for part in qkv), scale=SCALE)[0]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(stories(), st.integers(0, 2**16))
def test_grouped_heads_in_int8_stay_within_the_rounding(story, seed):
    torch.manual_seed(seed)
    tokens = grouped_tokens(story)
    for got, q, k, v in zip(run_grouped(story, tokens, torch.int8), *tokens, strict=True):
        expected = DenseAttention().attend(0, q[None], k[None], v[None], scale=SCALE)[0]
        # A number is off by half a scale: a score by at most sum|q| of those, a weight by a factor exp(2 * that) and
        # the result by what the weights' change moves the values, plus the values' own rounding.
        score = SCALE * q.abs().sum(dim=-1).max() * k.abs().max() / 254
        bound = (torch.expm1(2 * score) * v.abs().max() + v.abs().max() / 254) * 1.01
        assert (got - expected).abs().max() <= bound


class CountedLinear(nn.Linear):
    """Stands for an adapted layer: its forward must be used, so its weight may not be absorbed."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


def latent_tokens(story: Story) -> tuple[list[Tensor], ...]:
    """q_nope, q_rope, latent and k_rope of each sequence."""
    shapes = ((HEADS, None, NOPE), (HEADS, None, ROPE), (None, RANK), (None, ROPE))
    return tuple(
        [torch.randn([length if size is None else size for size in shape]) for length in story.lengths]
        for shape in shapes
    )


def absorbable(kv_b: nn.Module) -> Tensor | None:
    """What a layer hands over beside its projection."""
    return kv_b.weight if type(kv_b) is nn.Linear else None


def expanded(kv_b: nn.Module, *parts: Tensor) -> Tensor:
    """The whole of a sequence in one dense pass."""
    batch = (part[None] for part in parts)
    return DenseAttention().attend_latent(0, *batch, kv_b, kv_b_weight=None, scale=SCALE)[0]


def run_latent(story: Story, tokens, kv_b: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    pool = poison(PagePool.latent(story.pages, story.page_size, RANK, ROPE, dtype))
    outputs = []
    for step in story.steps:
        parts = (packed(story, step, part) for part in tokens)
        attention = PagedAttention([pool], batch_of(story, step))
        outputs.append(attention.attend_latent(0, *parts, kv_b, kv_b_weight=absorbable(kv_b), scale=SCALE))
    return collected(story, outputs)


@pytest.mark.parametrize("kind", [nn.Linear, CountedLinear])
@settings(max_examples=60, deadline=None)
@given(stories(), st.integers(0, 2**16))
def test_latents_equal_dense(kind, story, seed):
    torch.manual_seed(seed)
    kv_b = kind(RANK, HEADS * (NOPE + VALUE), bias=False)
    tokens = latent_tokens(story)
    with torch.no_grad():
        for got, *parts in zip(run_latent(story, tokens, kv_b, torch.float32), *tokens, strict=True):
            expected = expanded(kv_b, *parts)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(stories(), st.integers(0, 2**16))
def test_latents_in_int8_stay_within_the_rounding(story, seed):
    torch.manual_seed(seed)
    kv_b = nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False)
    per_head = kv_b.weight.detach().unflatten(0, (HEADS, -1))
    tokens = latent_tokens(story)
    with torch.no_grad():
        for got, *parts in zip(run_latent(story, tokens, kv_b, torch.int8), *tokens, strict=True):
            expected = expanded(kv_b, *parts)
            q_nope, q_rope, latent, k_rope = parts
            inner = torch.einsum("htn,hnr->htr", q_nope, per_head[:, :NOPE]).abs().sum(dim=-1).max()
            score = SCALE * (inner * latent.abs().max() + q_rope.abs().sum(dim=-1).max() * k_rope.abs().max()) / 254
            value = per_head[:, NOPE:].abs().sum(dim=-1).max() * latent.abs().max()  # the largest a value can be
            assert (got - expected).abs().max() <= (torch.expm1(2 * score) * value + value / 254) * 1.01


def test_a_latent_token_takes_rank_plus_rope_numbers():
    pool = PagePool.latent(7, 4, RANK, ROPE, torch.bfloat16)
    assert pool.keys.rows.untyped_storage().nbytes() == 7 * 4 * (RANK + ROPE) * 2
    assert pool.keys.rows.data_ptr() == pool.values.rows.data_ptr() + 2 * RANK
    small = PagePool.latent(7, 4, RANK, ROPE, torch.int8)
    assert small.keys.rows.untyped_storage().nbytes() == 7 * 4 * (RANK + ROPE)
    assert small.keys.scales is not None and small.keys.scales.shape == (7, 4)


def test_copied_pages_hold_what_the_others_held():
    pool = PagePool.latent(4, 2, RANK, ROPE, torch.int8)
    batch = PagedBatch.of([4], [4], [[2, 0]], page_size=2)
    pool.write(batch.slots, torch.randn(4, ROPE), torch.randn(4, RANK))
    before = pool.read(torch.tensor([2, 0]), 4, torch.float32)
    pool.copy([(2, 0), (0, 3)])
    after = pool.read(torch.tensor([0, 3]), 4, torch.float32)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


def test_slots_come_from_the_tables():
    batch = PagedBatch.of([3, 1], [5, 1], [[4, 1, 0], [2]], page_size=2)
    assert batch.query_starts.tolist() == [0, 3, 4]
    assert batch.slots.tolist() == [1 * 2, 1 * 2 + 1, 0 * 2, 2 * 2]
    assert batch.tables.tolist() == [[4, 1, 0], [2, 0, 0]]


@pytest.mark.parametrize(("count", "context", "pages"), [(0, 3, 2), (4, 3, 2), (1, 5, 2)])
def test_a_batch_that_does_not_fit_its_pages_is_refused(count, context, pages):
    message = (
        rf"new tokens \({count}\) must be .* the keys \({context}\), and those at most 2 for each of {pages} pages"
    )
    with pytest.raises(ValueError, match=message):
        PagedBatch.of([count], [context], [list(range(pages))], page_size=2)


def test_dropout_is_refused():
    pool = PagePool.grouped(1, 2, 1, 4, 4, torch.float32)
    attention, one = PagedAttention([pool], PagedBatch.of([1], [1], [[0]], 2)), torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match=r"dropout must be 0, got 0\.1"):
        attention.attend(0, one, one, one, scale=1.0, dropout=0.1)

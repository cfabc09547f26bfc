"""Steps: what is in them, in which order, how they end, and that a run goes on where it stopped."""

import json
import math
from collections import Counter
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modelwright.data.batches import RunBatches, held_out, open_batches
from modelwright.data.collate import collate
from modelwright.data.documents import UNLEARNED, StepBatch
from modelwright.data.encoding import encoder_of
from modelwright.data.examples import Tokens
from modelwright.errors import CheckpointError, ConfigError, RequestError
from tests.data.encoding.published import byte_level
from tests.data.listed import Listed, batches, of_lengths, section

LENGTHS = [9, 30, 12, 5, 22, 40, 7, 7, 18, 3, 28, 11, 33, 2, 16, 25, 6, 50, 13, 8, 21]
PACKINGS = ("documents", "none")


def steps(run: Any, count: int) -> list[StepBatch]:
    return list(islice(run, count))


def assert_same(one: StepBatch, other: StepBatch) -> None:
    assert (one.counted, one.tokens, one.sequences, one.places, one.broken) == (
        *(other.counted, other.tokens, other.sequences, other.places, other.broken),
    )
    assert len(one.micro) == len(other.micro)
    for a, b in zip(one.micro, other.micro, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("pack", PACKINGS)
def test_an_epoch_holds_every_row_once_and_ends_with_a_smaller_step(pack):
    run = batches(of_lengths(*LENGTHS), pack=pack, step=4, micro=2)
    for _ in range(3):  # epochs
        epoch = steps(run, run.steps_in(1)) if pack == "none" else _epoch(run)
        assert Counter(place.line for step in epoch for place in step.places) == Counter(range(1, len(LENGTHS) + 1))
        assert [len(step.micro) for step in epoch[:-1]] == [2] * (len(epoch) - 1)
        rows = [sum(len(each["input_ids"]) for each in step.micro) for step in epoch]
        assert rows[:-1] == [4] * (len(epoch) - 1) and 1 <= rows[-1] <= 4
    if pack == "none":
        assert run.steps_in(1) == 6 and rows[-1] == 1


def _epoch(run: RunBatches) -> list[StepBatch]:
    """Steps until as many rows as an epoch has were seen."""
    found: list[StepBatch] = []
    while sum(step.sequences for step in found) < len(LENGTHS):
        found.append(next(run))
    return found


@pytest.mark.parametrize("pack", PACKINGS)
def test_steps_are_counted_before_they_are_made(pack):
    run = batches(of_lengths(*LENGTHS), pack=pack, step=3, window=8)
    for epochs in (1, 3):
        seen, counted = 0, run.steps_in(epochs)
        again = batches(of_lengths(*LENGTHS), pack=pack, step=3, window=8)
        for step in steps(again, counted):
            seen += step.sequences
        assert seen == epochs * len(LENGTHS)
    dropped = batches(of_lengths(*LENGTHS), pack="none", step=4, drop_last=True)
    assert dropped.steps_in(1) == 5 and dropped.steps_in(3) == 15
    rows = [step.sequences for step in steps(dropped, 15)]
    assert rows == [4] * 15


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("pack", PACKINGS)
@pytest.mark.parametrize("wider", [2, 5, 7])
def test_steps_left_are_those_to_the_end_of_the_epochs(wider, pack, drop_last):
    """Wherever a run goes on, in steps of any size, no row of its last epoch comes twice and none is missing."""
    how: dict[str, Any] = {"pack": pack, "window": 8, "drop_last": drop_last, "seq_length": 80}
    lengths = LENGTHS + LENGTHS[::-1]
    whole = batches(of_lengths(*lengths), step=3, **how)
    for _ in range(whole.steps_in(3) + 1):
        again = batches(of_lengths(*lengths), step=wider, **how)
        again.restore(whole.state())
        left = steps(again, again.steps_left(3))
        if not drop_last:
            places = Counter(place.line for step in [*seen_of(whole, how), *left] for place in step.places)
            assert set(places.values()) == {3} and len(places) == len(lengths)
        next(again)
        assert again.state()["epoch"] == 3
        if len(seen_of(whole, how)) == whole.steps_in(3):
            assert drop_last or not left
            break
        next(whole)
    else:
        pytest.fail("the run has no end")


def seen_of(run: RunBatches, how: dict[str, Any]) -> list[StepBatch]:
    """The steps that a run of steps of three rows has taken."""
    again, found = batches(of_lengths(*LENGTHS, *LENGTHS[::-1]), step=3, **how), []
    while again.state() != run.state():
        found.append(next(again))
    return found


@pytest.mark.parametrize("pack", PACKINGS)
def test_rows_that_are_left_out_are_no_part_of_an_epoch(pack):
    rows: list[Any] = [Tokens(1000 * row + np.arange(4)) for row in range(300)]
    for broken in (5, 105, 205):
        rows[broken] = "torn"
    run = batches(Listed(rows), pack=pack, step=7, on_error="skip", seq_length=4)
    assert run.steps_in(2) == 2 * math.ceil(297 / 7) == run.steps_left(2)
    seen = Counter(place.line for step in steps(run, run.steps_in(2)) for place in step.places)
    assert seen == {row + 1: 2 for row in range(300) if row not in (5, 105, 205)}


def test_steps_that_are_passed_over_are_no_part_of_a_run_of_epochs():
    run = batches(of_lengths(*LENGTHS), pack="none", step=4, skip=2)
    assert (run.steps_in(1), run.steps_left(1), run.steps_left(2)) == (6, 4, 10)
    assert sum(step.sequences for step in steps(run, 4)) == len(LENGTHS) - 8 and run.steps_left(1) == 0
    beyond = batches(of_lengths(*LENGTHS), pack="none", step=4, skip=7)
    assert (beyond.steps_left(1), beyond.steps_left(2)) == (0, 5)


@pytest.mark.parametrize("skip, drop_last", [(0, False), (7, False), (13, False), (0, True), (5, True)])
def test_steps_until_epochs_end(skip, drop_last):
    """21 rows in steps of 4; of each step, how many come until the next one that is the last of two epochs."""
    run = batches(of_lengths(*LENGTHS), pack="none", step=4, skip=skip, drop_last=drop_last)
    whole = 2 * (5 if drop_last else 6)
    for passed in range(skip, skip + 20):
        assert run.steps_until(2) == whole - passed % whole
        next(run)


def test_steps_that_are_never_full_are_refused():
    run = batches(of_lengths(3, 3, 3), pack="none", step=4, drop_last=True)
    with pytest.raises(
        RequestError, match=r"a step needs batch.global \(4\) rows, and an epoch has 3: with data.drop_last"
    ):
        next(run)


@pytest.mark.parametrize("pack", PACKINGS)
def test_the_first_steps_may_be_passed_over(pack):
    how: dict[str, Any] = {"pack": pack, "step": 3, "window": 8}
    whole, later = batches(of_lengths(*LENGTHS), **how), batches(of_lengths(*LENGTHS), skip=2, **how)
    expected = steps(whole, 6)[2:]
    for step in expected[:2]:
        assert_same(next(later), step)
    again = batches(of_lengths(*LENGTHS), skip=2, **how)
    again.restore(later.state())
    assert_same(next(again), expected[2])


def test_a_row_says_what_it_holds():
    run = batches(of_lengths(*LENGTHS), step=2, micro=2, seq_length=64)
    step = next(run)
    [batch] = step.micro
    ids, labels, documents, positions = (batch[each] for each in ("input_ids", "labels", "seq_idx", "position_ids"))
    assert "attention_mask" not in batch and ids.dtype == labels.dtype == documents.dtype == torch.int64
    starts = positions == 0
    assert (labels[starts] == UNLEARNED).all()  # nothing foresees a document's first token
    real = ids != 999_999
    assert step.tokens == int(real.sum()) and step.counted == int((labels[:, 1:] != UNLEARNED).sum())
    assert step.counted == step.tokens - step.sequences
    for row in range(len(ids)):
        for number in documents[row].unique().tolist():
            at = documents[row] == number
            assert positions[row][at].tolist() == list(range(int(at.sum())))
            if real[row][at].all():
                first = int(ids[row][at][0])
                assert first % 1000 == 0 and ids[row][at].tolist() == list(range(first, first + int(at.sum())))
            else:  # the tail is a document of its own
                assert not real[row][at].any() and (labels[row][at] == UNLEARNED).all()
    assert [place.line for place in step.places] == [int(i) // 1000 + 1 for i in ids[starts & real].tolist()]


def test_rows_apart_are_masked_where_they_differ_in_length():
    run = batches(of_lengths(3, 5, 5, 5), pack="none", step=4, micro=2, shuffle=False)
    first, second = next(run).micro
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert first["input_ids"][0, 3:].tolist() == [999_999] * 2 and first["labels"][0, 3:].tolist() == [UNLEARNED] * 2
    assert second.keys() == {"input_ids", "labels"}  # full rows need no mask


@pytest.mark.parametrize("pack", PACKINGS)
def test_a_run_goes_on_after_any_step(pack):
    sources = of_lengths(*LENGTHS), of_lengths(4, 8, 15, 16, 23, name="more")
    how: dict[str, Any] = {"pack": pack, "step": 3, "micro": 2, "window": 8, "weights": [0.7, 0.3]}
    whole, states = batches(*sources, **how), []
    expected = []
    for _ in range(24):
        states.append(json.loads(json.dumps(whole.state())))
        expected.append(next(whole))
    for done in range(24):
        again = batches(*sources, **how)
        again.restore(states[done])
        assert again.state() == states[done]
        for one, other in zip(steps(again, 3), expected[done : done + 3], strict=False):
            assert_same(one, other)
    assert len(json.dumps(states[-1])) < 1000


@pytest.mark.parametrize("pack", PACKINGS)
def test_a_broken_row_is_left_out_and_counted_wherever_a_run_goes_on(pack):
    rows = [Tokens(1000 * row + np.arange(length)) for row, length in enumerate(LENGTHS * 10)]
    for broken in (17, 90):
        rows[broken] = "no such key"  # type: ignore[call-overload]
    how: dict[str, Any] = {"pack": pack, "step": 10, "on_error": "skip", "window": 64}
    whole, states, expected = batches(Listed(rows), **how), [], []
    while not expected or expected[-1].broken < 4:  # two epochs' broken rows
        states.append(whole.state())
        expected.append(next(whole))
    assert sum(step.sequences for step in expected) > 300
    for done in range(0, len(expected), 3):
        again = batches(Listed(rows), **how)
        again.restore(states[done])
        assert_same(next(again), expected[done])


def test_a_broken_row_stops_a_run_with_its_place():
    run = batches(Listed([Tokens(np.arange(4)), "this is no JSON"]), pack="none", shuffle=False, step=2)
    with pytest.raises(RequestError, match=r"rows.jsonl:2: this is no JSON"):
        next(run)


def test_more_broken_rows_than_one_of_a_hundred_stop_a_run():
    rows: list[Any] = [Tokens(np.arange(4))] * 300
    for broken in (5, 105, 205):
        rows[broken] = "torn"
    run = batches(Listed(rows), pack="none", step=100, on_error="skip")
    assert steps(run, 3)[-1].broken == 3
    rows[250] = "torn"
    for pack in PACKINGS:
        with pytest.raises(RequestError, match=r"4 of the epoch's 300 rows were left out, and at most 1 % may be"):
            steps(batches(Listed(rows), pack=pack, step=100, on_error="skip", window=300), 4)
    few = batches(Listed(rows[200:210]), pack="none", step=3, on_error="skip")  # one always may be
    assert steps(few, 3)[-1].broken == 1


def test_rows_that_lose_all_their_labels_are_counted_and_not_errors():
    rows = [Tokens(np.arange(length)) for length in (4, 30, 5, 6)]
    run = batches(Listed(rows), pack="none", step=2, seq_length=10, truncate="end", shuffle=False)
    assert [step.tokens for step in steps(run, 2)] == [14, 11]  # a whole learned row is cut, and still teaches
    single = batches(Listed([Tokens(np.arange(1)), *rows]), pack="none", step=4, truncate="end", shuffle=False)
    assert next(single).broken == 1
    with pytest.raises(RequestError, match=r"rows.jsonl:1: the row teaches nothing"):
        next(batches(Listed([Tokens(np.arange(1)), *rows]), pack="none", step=4, shuffle=False))
    with pytest.raises(RequestError, match="nothing can be learned of the data: all 3 rows were left out"):
        next(batches(Listed([Tokens(np.arange(1))] * 3), step=4, truncate="end"))


def test_other_files_or_settings_are_refused():
    state = batches(of_lengths(*LENGTHS)).state()
    changed = of_lengths(*LENGTHS)
    changed.sha256 = "1" * 64
    with pytest.raises(
        CheckpointError, match=r"rows.jsonl has changed since the checkpoint was written: it had 21 bytes"
    ):
        batches(changed).restore(state)
    with pytest.raises(CheckpointError, match="weights of the data was"):
        batches(of_lengths(*LENGTHS), of_lengths(3, name="more")).restore(state)
    for name, value in (("seq_length", 128), ("window", 4), ("shuffle", False), ("pack", "none"), ("seed", 1)):
        with pytest.raises(CheckpointError, match=f"{name} of the data was .* and is {value!r}"):
            batches(of_lengths(*LENGTHS), **{name: value}).restore(state)
    moved = of_lengths(*LENGTHS, name="elsewhere")
    batches(moved, step=5, micro=5).restore(state)  # the size of a step, and where the files lie, may change


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("pack", PACKINGS)
def test_ranks_that_take_every_nth_row_share_the_step(pack, ranks):
    run = batches(of_lengths(*LENGTHS), pack=pack, step=6)
    made = list(islice(run._rows.made(run._rows.start()), 6))
    whole = next(run)
    seen: Counter[int] = Counter()
    counted = tokens = 0
    for rank in range(ranks):
        own = collate([row.documents for row in made[rank::ranks]], run.pad_id, run.packs)
        real = own["input_ids"] != run.pad_id
        seen.update(own["input_ids"][real].tolist())
        counted, tokens = counted + int((own["labels"][:, 1:] != UNLEARNED).sum()), tokens + int(real.sum())
    everything = [each["input_ids"] for each in whole.micro]
    assert seen == Counter(i for ids in everything for i in ids.flatten().tolist() if i != run.pad_id)
    assert (counted, tokens) == (whole.counted, whole.tokens)


def test_a_mixture_keeps_its_shares_and_wraps_each_source():
    run = batches(of_lengths(*[4] * 30), of_lengths(*[4] * 5, name="few"), pack="none", step=1, weights=[3.0, 1.0])
    files = [step.places[0].file for step in steps(run, 80)]
    for done in range(1, 81):
        assert abs(files[:done].count("few.jsonl") - done / 4) < 1
    assert run.steps_in(1) == 35


def test_files_are_opened_by_the_section(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "hello"}\n{"text": "world"}\n{"text": "four"}\n')
    source = SimpleNamespace(path="train.jsonl", format="auto", weight=1.0, name="train")
    part = section(train=(source,), eval=(source,), pack="none")
    encoder = encoder_of(byte_level(), part)
    step = next(open_batches(part, encoder, 1, 3, base=tmp_path))
    assert sorted(place.line for place in step.places) == [1, 2, 3]
    evaluated = held_out(part, encoder, micro=2, base=tmp_path)["train"]
    for _ in range(2):  # in order, as often as asked
        first, second = evaluated
        assert len(first["input_ids"]) == 2 and len(second["input_ids"]) == 1
    with pytest.raises(ConfigError, match=r"data.train must name at least one source"):
        open_batches(section(), encoder, 1, 3)

"""Sequences count their tokens and name their pages by all that stands before the page's end."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.engine.prefix import page_name, root_name
from modelwright.engine.sequence import Sequence, Status

KEYS = st.one_of(st.integers(0, 3), st.tuples(st.sampled_from([b"a", b"b", "a"]), st.integers(0, 2)))


def test_a_new_sequence_waits_with_its_prompt():
    sequence = Sequence("a", (5, 6, 7), max_tokens=4)
    assert (sequence.status, sequence.tokens, sequence.generated) == (Status.WAITING, [5, 6, 7], [])
    assert (sequence.remaining, sequence.limit, sequence.reusable, sequence.ended) == (3, 7, 2, False)


def test_drawn_tokens_follow_the_prompt():
    sequence = Sequence("a", (5, 6, 7), max_tokens=4)
    sequence.tokens.append(9)
    sequence.computed = 3
    assert (sequence.generated, sequence.remaining, sequence.reusable, sequence.prompt) == ([9], 1, 3, (5, 6, 7))


def test_prompt_logprobs_forbid_reuse_until_a_token_is_drawn():
    sequence = Sequence("a", (5, 6, 7), max_tokens=4, prompt_logprobs=True)
    assert sequence.reusable == 0
    sequence.tokens.append(9)
    assert sequence.reusable == 3


def test_every_prompt_token_has_a_key():
    with pytest.raises(AssertionError, match="one key for each token"):
        Sequence("a", (5, 6, 7), max_tokens=4, keys=(5, 6))


def test_a_page_is_named_by_its_keys_and_those_before():
    sequence = Sequence("a", (5, 6, 7, 8), max_tokens=4, salt="model")
    first = page_name(root_name("model"), [5, 6])
    assert sequence.page_names(2, 2) == [first, page_name(first, [7, 8])]
    assert len(first) == 32


def test_names_go_on_through_drawn_tokens_and_keep():
    sequence = Sequence("a", (5, 6, 7), max_tokens=4)
    [before] = sequence.page_names(2, 1)
    sequence.tokens += [8, 9]
    assert sequence.page_names(2, 2) == Sequence("b", (5, 6, 7, 8), max_tokens=1).page_names(2, 2)
    assert sequence.page_names(2, 1) == [before]


def test_a_picture_is_named_by_its_pixels_and_not_by_its_placeholder():
    def names(pixels: bytes) -> list[bytes]:
        keys = (5, (pixels, 0), (pixels, 1), 6)
        return Sequence("a", (5, 99, 99, 6), max_tokens=1, keys=keys).page_names(2, 2)

    plain = Sequence("a", (5, 99, 99, 6), max_tokens=1).page_names(2, 2)
    assert names(b"cat") == names(b"cat")
    assert not {*names(b"cat")} & {*names(b"dog"), *plain}


@given(st.lists(KEYS, min_size=4, max_size=4), st.lists(KEYS, min_size=4, max_size=4), st.sampled_from(["", "x"]))
def test_pages_have_one_name_exactly_when_all_up_to_them_is_equal(one, other, salt):
    prompt = (0, 0, 0, 0)
    ours = Sequence("a", prompt, 1, keys=tuple(one)).page_names(2, 2)
    theirs = Sequence("b", prompt, 1, keys=tuple(other), salt=salt).page_names(2, 2)
    for index in range(2):
        end = 2 * (index + 1)
        assert (ours[index] == theirs[index]) == (one[:end] == other[:end] and salt == "")


def test_a_sibling_continues_where_its_leader_stands():
    leader, sibling = Sequence("a", (5, 6, 7), 4), Sequence("b", (5, 6, 7), 4)
    leader.table, leader.computed, leader.publishes = [3, 1], 3, False
    sibling.continue_from(leader)
    leader.table.append(2)
    assert (sibling.table, sibling.computed, sibling.publishes) == ([3, 1], 3, False)


def test_planning_steps_imports_no_torch():
    code = "import sys, modelwright.engine.scheduler; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

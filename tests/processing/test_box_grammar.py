"""The grammar of boxes: what it lets through is well-formed, and what is well-formed it lets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.processing.box_grammar import DET_CLOSE, BoxGrammar
from modelwright.processing.grounding import format_grounding, parse_grounding_report

GRAMMAR = BoxGrammar(max_boxes=3)


def test_what_may_come_next():
    digits = set("0123456789")
    for text, allowed in (
        ("", {"["}),
        ("[", {"["}),
        ("[[", digits),
        ("[[0", {","}),
        ("[[1", digits | {","}),
        ("[[99", digits - {"9"} | {","}),  # x1 leaves room for x2
        ("[[998,", digits | {" "}),
        ("[[998, 1, ", {"9"}),
        ("[[998, 1, 99", {"9"}),
        ("[[998, 1, 999", {","}),
        ("[[25, 1, 2", digits),
        ("[[25, 1, 25", digits),  # 25 itself is too little, 250 is not
        ("[[250, 1, 25", set("123456789")),
        ("[[1, 2, 3, 4", digits | {"]"}),
        ("[[1, 2, 3, 4]", {",", "]"}),
        ("[[1, 2, 3, 4],", {" ", "["}),
        ("[[1, 2, 3, 4]]", {DET_CLOSE}),
        ("[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]", {"]"}),  # no fourth box
        ("[[3, 2, 2,", set()),
        ("cat", set()),
    ):
        assert GRAMMAR.allowed_next(text) == allowed, text


@pytest.mark.parametrize(
    "text", ["[1", "[[01", "[[1000", "[[1,  2", "[[1 ,", "[[5, 5, 5,", "[[1, 2, 3, 4, 5", "[[1, 2, 3]", "[]", "]", " "]
)
def test_wrong_beginnings(text):
    assert not GRAMMAR.is_prefix(text)
    assert not GRAMMAR.is_complete(text)


@pytest.mark.slow
@given(st.data())
def test_a_walk_never_sticks_and_ends_well_formed(data):
    text = ""
    while not GRAMMAR.is_complete(text):
        text += data.draw(st.sampled_from(sorted(GRAMMAR.allowed_next(text))))
        assert GRAMMAR.is_prefix(text)
    report = parse_grounding_report(f"<|ref|>x<|/ref|><|det|>{text}<|/det|>", (999, 999))
    assert report.skipped == [] and 1 <= len(report.groundings[0].boxes) <= 3


@given(st.lists(st.tuples(*[st.integers(0, 499)] * 2, *[st.integers(500, 999)] * 2), min_size=1, max_size=3))
def test_printed_boxes_are_in_the_grammar(boxes):
    text = format_grounding("x", boxes).split("<|det|>")[1].removesuffix(DET_CLOSE)
    assert GRAMMAR.is_complete(text)
    assert GRAMMAR.is_complete(text.replace(" ", ""))

"""Answers with boxes: the well-formed read exactly, everything else skipped with its reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.errors import RequestError
from modelwright.processing.grounding import Grounding, format_grounding, parse_grounding, parse_grounding_report


def boxes(max_size=4):
    def box(numbers):
        (x1, x2), (y1, y2) = numbers
        return x1, y1, x2, y2

    pair = (
        st.tuples(st.integers(0, 999), st.integers(0, 999))
        .filter(lambda p: p[0] != p[1])
        .map(lambda p: tuple(sorted(p)))
    )
    return st.lists(st.tuples(pair, pair).map(box), min_size=1, max_size=max_size)


def test_boxes_become_pixels():
    text = "Here: <|ref|>the cat<|/ref|><|det|>[[0, 333, 999, 666], [111,222,333,444]]<|/det|>."
    assert parse_grounding(text, (1998, 999)) == [
        Grounding("the cat", ((0, 333, 1998, 666), (222, 222, 666, 444)), image=0)
    ]


def test_spaces_between_tokens_do_not_matter():
    text = " <|ref|> cat <|/ref|> <|det|> [[ 1, 2, 3, 4 ]] <|/det|> <|ref|>dog<|/ref|>\n<|det|>[5, 6, 7, 8]<|/det|>"
    assert parse_grounding(text, (999, 999)) == [Grounding("cat", ((1, 2, 3, 4),)), Grounding("dog", ((5, 6, 7, 8),))]


def test_several_pictures():
    text = "<|ref|>a<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>"
    sizes = [(10, 20), (30, 40)]
    assert parse_grounding(text, sizes) == [Grounding("a", ((0, 0, 30, 40),), image=1)]
    assert parse_grounding(text, sizes, image=0) == [Grounding("a", ((0, 0, 10, 20),), image=0)]
    with pytest.raises(RequestError, match="image is 2, but there are 2 image sizes"):
        parse_grounding(text, sizes, image=2)
    for wrong in ((0, 5), [], [(1, 2, 3)]):
        with pytest.raises(RequestError, match="all positive"):
            parse_grounding(text, wrong)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[[2, 311, 99999, 98]]", "four whole numbers from 0 to 999"),
        ("[[470,]]", "four whole numbers from 0 to 999"),
        ("[[1, 2, 3, -4]]", "four whole numbers"),
        ("[[1, 2, 3, 4.5]]", "four whole numbers"),
        ("[[1, 2, 3, 4, 5]]", "four whole numbers"),
        ("[[1, 2, 3, ٤]]", "four whole numbers"),
        ("[[5, 2, 5, 4]]", "x1 must be less than x2"),
        ("[[1, 9, 3, 4]]", "y1 less than y2"),
        ("__import__('os').abort()", "no box"),
        ("", "no box"),
        ("[[" + "9" * 5000 + ", 1, 2, 3]]", "four whole numbers"),
    ],
)
def test_malformed_boxes_are_skipped_and_reported(body, reason):
    report = parse_grounding_report(f"<|ref|>a<|/ref|><|det|>{body}<|/det|>", (10, 10))
    assert report.groundings == []
    assert [reason in skipped.reason for skipped in report.skipped] == [True]


def test_a_bad_box_does_not_spoil_its_neighbour():
    report = parse_grounding_report("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4], [9, 9, 1, 1]]<|/det|>", (999, 999))
    assert report.groundings == [Grounding("a", ((1, 2, 3, 4),))]
    assert [skipped.text for skipped in report.skipped] == ["[9, 9, 1, 1]"]


@pytest.mark.parametrize(
    ("text", "labels", "reasons"),
    [
        ("<|ref|>a<|/ref|>", [], ["the label has no boxes"]),
        ("<|ref|>a<|/ref|><|ref|>b<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", ["b"], ["the label has no boxes"]),
        ("<|det|>[[1, 2, 3, 4]]<|/det|>", [], ["the boxes have no label"]),
        (
            "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|><|det|>[[1, 2, 3, 4]]<|/det|>",
            ["a"],
            ["the boxes have no label"],
        ),
        ("<|/det|><|/ref|>", [], ["it closes what <|det|> did not open", "it closes what <|ref|> did not open"]),
        ("<|ref|>a", [], ["<|ref|> is not closed"]),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4], [5, 6", ["a"], ["<|det|> is not closed"]),
        ("<|ref|>x<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", ["a"], ["<|ref|> is not closed"]),
        ("nothing at all", [], []),
    ],
)
def test_stray_and_missing_tags(text, labels, reasons):
    report = parse_grounding_report(text, (999, 999))
    assert [grounding.label for grounding in report.groundings] == labels
    assert [skipped.reason for skipped in report.skipped] == reasons


@given(
    st.text("a <|/refdet>[],0123456789-.x", max_size=80),
    st.lists(
        st.sampled_from(["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[1, 2, 3, 4]]", "[", "]", "cat", "7, "]),
        max_size=20,
    ),
)
def test_no_answer_raises_and_every_box_keeps_the_rule(noise, parts):
    for text in (noise, "".join(parts), noise.join(parts)):
        for grounding in parse_grounding(text, (640, 480)):
            assert grounding.label
            for x1, y1, x2, y2 in grounding.boxes:
                assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 480


@given(st.text(st.characters(blacklist_characters="<"), min_size=1).filter(str.strip), boxes())
def test_what_is_printed_is_read_back(label, given_boxes):
    text = format_grounding(label, given_boxes)
    report = parse_grounding_report(text, (999, 999))
    assert report.skipped == []
    (grounding,) = report.groundings
    assert grounding.label == label.strip()
    assert [tuple(round(value) for value in box) for box in grounding.boxes] == given_boxes


def test_printing_checks_what_it_prints():
    assert (
        format_grounding("a", [(1, 2, 3, 4), (5, 6, 7, 8)])
        == "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>"
    )
    for label, given_boxes, message in (
        (" ", [(1, 2, 3, 4)], "words without grounding tags"),
        ("a<|/ref|>", [(1, 2, 3, 4)], "words without grounding tags"),
        ("a", [], "'a' has no box"),
        ("a", [(1, 2, 3, 1000)], r"\[1, 2, 3, 1000\] of 'a': a box must be four whole numbers from 0 to 999"),
        ("a", [(3, 2, 3, 4)], "x1 must be less than x2"),
    ):
        with pytest.raises(RequestError, match=message):
            format_grounding(label, given_boxes)


def test_a_tag_that_closes_nothing_stays_in_what_is_open():
    report = parse_grounding_report("<|ref|>a<|/det|>b<|/ref|><|det|>x<|/ref|>[1, 2, 3, 4]<|/det|>", (999, 999))
    assert report.groundings == [Grounding("a<|/det|>b", ((1, 2, 3, 4),))]
    assert [skipped.text for skipped in report.skipped] == ["<|/det|>", "<|/ref|>"]

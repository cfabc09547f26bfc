"""Boxes of an answer that grows: the same whatever it is cut into, and the same as of the whole text."""

import itertools
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.processing.grounding import parse_grounding_report
from modelwright.processing.grounding_reader import TAG
from modelwright.server.boxes import BoxReader, locate_text
from modelwright.server.events import Grounded, NotGrounded, Row, Text
from modelwright.server.wire.grounding import GroundingOptions

CAT = "See <|ref|> the cat <|/ref|><|det|>[[0, 333, 999, 666], [111, 222, 333, 444]]<|/det|>, asleep."
PIECES = (
    *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|", "<", "|>", "<|/", "<|re", "et|>", "/de"),
    *("[[1, 2, 3, 4]]", "[[1, 2, 3, 4], [9, 9, 1, 1]]", "[5,6,7,8", "]", "[]", "cat", " ", "\n", "é", "a < b", "7"),
)


def answers():
    return st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def cut(text, places):
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def read(pieces, sizes=((999, 999),), **options):
    row = Row([BoxReader(GroundingOptions(**options), list(sizes))])
    events = [event for piece in pieces for event in row.push(piece)]
    return events + row.finish()


def content(events):
    return "".join(event.text for event in events if isinstance(event, Text))


def joined(events):
    """Events with neighbouring texts joined: what a stream and an answer in one piece have in common."""
    whole = []
    for event in events:
        if isinstance(event, Text) and whole and isinstance(whole[-1], Text):
            whole[-1] = Text(whole[-1].text + event.text)
        else:
            whole.append(event)
    return whole


def shown(text):
    """What plain content is, by one expression over the whole text."""
    hidden = r"<\|det\|>.*?(?=<\|(?:ref|/?det)\|>|\Z)|<\|/?(?:ref|det)\|>|<\|grounding\|>"
    return re.sub(hidden, "", text, flags=re.DOTALL)


def test_boxes_follow_the_tag_that_closes_them():
    first, one, two, rest = joined(read([CAT], sizes=[(10, 10), (1998, 999)]))
    assert first == Text(CAT[: CAT.index(", asleep")]) and rest == Text(", asleep.")
    assert one == Grounded("the cat", 1, (0, 333, 1998, 666), (0, 333, 999, 666), (12, 19))
    assert two == Grounded("the cat", 1, (222, 222, 666, 444), (111, 222, 333, 444), (12, 19))
    assert CAT[slice(*one.span)] == "the cat"


def test_plain_text_has_neither_tags_nor_coordinates():
    events = read([CAT], text="plain")
    assert content(events) == "See  the cat , asleep."
    spans = {event.span for event in events if isinstance(event, Grounded)}
    assert [content(events)[slice(*span)] for span in spans] == ["the cat"]


@pytest.mark.parametrize(
    ("coordinates", "box"),
    [("pixels", (10, 40, 20, 80)), ("normalized", (1 / 3, 1 / 3, 2 / 3, 2 / 3)), ("raw", (333, 333, 666, 666))],
)
def test_coordinates_are_those_asked_for(coordinates, box):
    text = "<|ref|>a<|/ref|><|det|>[[333, 333, 666, 666]]<|/det|>"
    (found,) = [each for each in read([text], sizes=[(30, 120)], coordinates=coordinates) if isinstance(each, Grounded)]
    assert found.box == pytest.approx(box) and found.raw == (333, 333, 666, 666)


@given(answers(), st.lists(st.integers(0, 60)), st.sampled_from(["tags", "plain"]))
def test_any_cut_says_what_the_whole_text_says(text, places, how):
    events = read(cut(text, places), sizes=[(640, 480)], text=how)
    report = parse_grounding_report(text, (640, 480))
    assert joined(events) == joined(read([text], sizes=[(640, 480)], text=how))
    assert [(e.label, e.box) for e in events if isinstance(e, Grounded)] == [
        (each.label, box) for each in report.groundings for box in each.boxes
    ]
    assert [(e.text, e.reason) for e in events if isinstance(e, NotGrounded)] == [
        (each.text, each.reason) for each in report.skipped
    ]
    assert content(events) == (text if how == "tags" else shown(text))
    for event in events:
        if isinstance(event, Grounded) and "<|" not in event.label:
            assert content(events)[slice(*event.span)] == event.label


@given(answers(), st.lists(st.integers(0, 60)))
def test_plain_text_never_shows_what_it_would_take_back(text, places):
    row, so_far = Row([BoxReader(GroundingOptions(text="plain"), [(9, 9)])]), ""
    for piece in cut(text, places):
        so_far += content(row.push(piece))
        assert shown(text).startswith(so_far)


@given(answers(), st.lists(st.integers(0, 60)))
def test_tagged_text_is_never_kept_back(text, places):
    row = Row([BoxReader(GroundingOptions(), [(9, 9)])])
    for piece in cut(text, places):
        assert content(row.push(piece)) == piece
    assert content(row.finish()) == ""


@pytest.mark.parametrize(
    "written", ["<|ref|>a", "<|det|>[[1, 2", "x <|/de", "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/d"]
)
def test_an_answer_that_is_cut_short_keeps_coordinates_hidden(written):
    events = read(list(written), text="plain")
    assert content(events) == shown(written)
    assert not re.search(r"\[|\d", content(events))


def test_nothing_is_parsed_where_that_is_not_wished():
    assert joined(read(list(CAT), parse=False)) == [Text(CAT)]
    assert joined(read(list(CAT), parse=False, text="plain")) == [Text(shown(CAT))]


def test_boxes_without_a_picture_are_told():
    skipped = [event for event in read([CAT], sizes=[]) if not isinstance(event, Text)]
    assert skipped == [NotGrounded("the cat", "the request shows no picture that a box could lie on")]


def test_the_trained_question():
    assert locate_text(["the red circle"]) == "<|grounding|>Locate <|ref|>the red circle<|/ref|>."
    assert locate_text(["a", " b", "c"]) == (
        "<|grounding|>Locate <|ref|>a<|/ref|>, <|ref|>b<|/ref|> and <|ref|>c<|/ref|>."
    )


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"coordinates": "percent"}, "coordinates"),
        ({"text": "html"}, "text"),
        ({"parse": 1}, "parse"),
        ({"boxes": True}, "boxes"),
        ({"locate": "cat"}, "locate"),
        ({"locate": [" "]}, "locate must hold words"),
        ({"locate": ["a<|/ref|>b"]}, "grounding tags"),
        ({"locate": ["<|grounding|>"]}, "grounding tags"),
        ({"locate": ["a" * 257]}, "256"),
        ({"locate": ["a"] * 17}, "at most 16"),
    ],
)
def test_a_wrong_request_is_refused(field, says):
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(field, GroundingOptions)


def test_a_tag_that_a_reader_knows_is_one_that_processing_knows():
    for tag in ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"):
        assert TAG.fullmatch(tag)

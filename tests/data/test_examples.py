"""The values that rows become: places, pictures' order, and errors that cross between processes."""

import pickle

import pytest

from modelwright.data.examples import BrokenRow, Chat, Message, PictureRef, Place
from modelwright.errors import RequestError


def test_a_place_is_written_as_editors_read_it():
    assert str(Place("chats.jsonl", 17)) == "chats.jsonl:17"


def test_pictures_of_a_chat_come_in_the_order_in_which_they_are_shown():
    first, second, third = (PictureRef(name) for name in ("a.png", "b.png", "c.png"))
    asked = Message("user", (first, "Which of ", second, " is round?"))
    chat = Chat((asked, Message("assistant", ("The first.",)), Message("user", (third, "And this?"))))
    assert chat.pictures == (first, second, third)
    assert asked.words == "Which of  is round?"


def test_a_broken_row_says_where_and_why_and_crosses_processes():
    error = BrokenRow(Place("a.jsonl", 3), "it is not JSON")
    with pytest.raises(RequestError, match=r"a\.jsonl:3: it is not JSON"):
        raise error
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.place, again.reason) == (str(error), error.place, error.reason)

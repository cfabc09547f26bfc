"""Thoughts and answers are parted alike however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.engine.results import Update
from modelwright.server.answers import Answer, joined
from modelwright.server.events import Reasoning, Row, Text
from modelwright.server.reasoning import ThinkReader

CASES = [
    ("<think>\nso\n</think>\n\nAnswer", False, "so", "Answer"),
    ("so\n</think>\nAnswer", True, "so", "Answer"),
    ("Answer <think>no</think>", False, "", "Answer <think>no</think>"),
    ("\n<think>a</think>b", False, "a", "b"),
    ("<think>never ends", False, "never ends", ""),
    ("<thin", False, "", "<thin"),
    ("a</thin", True, "a</thin", ""),
    ("a\n</th b</think>c", True, "a\n</th b", "c"),
    ("", True, "", ""),
    ("</think>", True, "", ""),
]


def parted(text, begun, cuts):
    row = Row([ThinkReader(begun)])
    at, events = 0, []
    for cut in [*sorted(cuts), len(text)]:
        events += row.push(text[at:cut])
        at = max(at, cut)
    events = joined(events + row.finish())
    thought = "".join(event.text for event in events if isinstance(event, Reasoning))
    said = "".join(event.text for event in events if isinstance(event, Text))
    return thought, said


@pytest.mark.parametrize(("text", "begun", "thought", "said"), CASES)
def test_every_cut(text, begun, thought, said):
    for cut in range(len(text) + 1):
        assert parted(text, begun, [cut]) == (thought, said)
    assert parted(text, begun, range(len(text))) == (thought, said)


@given(
    text=st.text(st.sampled_from("<>/think\n ab"), max_size=30), begun=st.booleans(), cuts=st.sets(st.integers(0, 30))
)
def test_cuts_change_nothing(text, begun, cuts):
    cuts = [cut for cut in cuts if cut <= len(text)]
    assert parted(text, begun, cuts) == parted(text, begun, [])


def test_tokens_of_thoughts_are_counted():
    """One update a token: those from the mark that opens to the one that closes; none where nothing was thought."""

    def counted(pieces):
        thinks = ThinkReader(begun=False)
        answer = Answer(0, Row([thinks]), thinks=thinks)
        for piece in pieces:
            answer.take(Update("r", 0, piece, (1,)))
        return answer.tokens, answer.thought_tokens

    assert counted(["<think>", "so", " so", "</think>", "Yes", "."]) == (6, 4)
    assert counted(["Yes", "."]) == (2, 0)

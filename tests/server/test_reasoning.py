"""Thoughts and answers are parted alike however the text is cut."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.engine.results import Update
from modelwright.server.answers import Answer, joined
from modelwright.server.events import Reasoning, Row, Text
from modelwright.server.reasoning import ThinkReader
from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

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


def test_usage_is_told_alike_by_chat_completions_and_responses():
    """With the details that OpenAI's answers have, whether the answer is told whole or as it comes."""
    said = "<think>ab</think>Yes"  # a token is a byte
    guided = {"model": "tiny", "temperature": 0, "structured_outputs": {"choice": [said]}}
    asked = guided | {"messages": [{"role": "user", "content": "Hi"}]}
    streamed = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

    async def main():
        async with running(llama(), {"reasoning": "think"}) as server:
            post = server.client.post
            chats = [await post(CHAT, asked | more) for more in ({"n": 2}, {"n": 2} | streamed)]
            completions = [
                await post(COMPLETIONS, guided | {"prompt": "Hi", "max_tokens": 40} | more) for more in ({}, streamed)
            ]
            return chats, completions, await post(RESPONSES, guided | {"input": "Hi"})

    chats, completions, response = asyncio.run(main())
    thoughts = len(said) - len("Yes") - len("<think")
    for (whole, stream), drawn, thought in ((chats, 2 * len(said), 2 * thoughts), (completions, len(said), 0)):
        usage, told = whole.json()["usage"], [frame["usage"] for frame in stream.frames()[:-1] if frame["usage"]]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
        assert usage["completion_tokens"] == drawn
        assert usage["prompt_tokens_details"] | {"cached_tokens": 0} == {
            "cached_tokens": 0,
            "picture_tokens": 0,
            "cache_write_tokens": 0,
        }
        assert told[-1] | {"prompt_tokens_details": {}} == usage | {"prompt_tokens_details": {}}
        counts = [each["completion_tokens_details"]["reasoning_tokens"] for each in told]
        assert counts == sorted(counts)
    usage = response.json()["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": thoughts}
    assert usage["input_tokens_details"].keys() == {"cached_tokens", "picture_tokens", "cache_write_tokens"}

"""What conversations print, where pictures go, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.errors import ConfigError, RequestError
from modelwright.processing.chat import conversation_segments, count_open, fill_pictures, prompt_segments

EOS = "<｜end▁of▁sentence｜>"


def printed(messages, **options) -> str:
    return "".join(segment.text for segment in conversation_segments(messages, **options))


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_the_reference_conversations_print_as_officially_tokenised(golden):
    cases = json.loads((golden / "cases.json").read_text("utf-8"))
    for name in ("one_image", "two_images", "three_images_uncropped", "text_only"):
        text = printed(cases[name]["conversation"], images=cases[name]["images"])
        assert text == cases[name]["sft_format"] + EOS
    # the official printout shows a space before answers and names the system role; its tokens do neither
    assert printed(cases["system"]["conversation"]).startswith("You are a helpful assistant.<|User|>: Hello!\n\n")
    assert "<|Assistant|>:A red circle." + EOS in printed(cases["multi_turn"]["conversation"], images=["big"])


def test_formats():
    turns = [user("<image> a cat"), assistant(" yes ")]
    assert printed(turns, images=[1]) == f"<|User|>: <image> a cat\n\n<|Assistant|>:yes{EOS}"
    assert printed(turns, images=[1], sft_format="plain") == f"<image> a catyes{EOS}"
    assert printed(turns, images=[1], sft_format="alignment") == f"<image>\nyes{EOS}"
    with pytest.raises(ConfigError, match="'llama' is unknown: it must be one of deepseek, plain, alignment"):
        printed(turns, sft_format="llama")


def test_a_last_question_is_followed_by_the_header_and_an_empty_question_has_no_blank_line():
    assert printed([user("hi")]) == "<|User|>: hi\n\n<|Assistant|>:"
    assert printed([user("")]) == "<|User|>:<|Assistant|>:"
    assert printed([user(None)]) == "<|User|>:<|Assistant|>:"


def test_only_answers_and_their_ends_are_learnt():
    learnt = [
        segment.text
        for segment in conversation_segments([user("a"), assistant("b"), user("c"), assistant("d")])
        if segment.is_answer
    ]
    assert learnt == ["b" + EOS, "d" + EOS]


def test_the_system_prompt_comes_first():
    assert printed([user("hi")], system_prompt=" Be brief. ").startswith("Be brief.<|User|>: hi")
    with pytest.raises(RequestError, match="keep one of them"):
        printed([{"role": "system", "content": "x"}, user("hi")], system_prompt="y")


def test_openai_parts_are_joined_by_lines():
    parts = [
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": "What is this? "},
        {"type": "image", "image": "b"},
        {"type": "image", "path": "c"},
        {"type": "text", "text": "\nSo? "},
    ]
    segments = conversation_segments([user(parts)])
    assert "".join(s.text for s in segments) == (
        "<|User|>: <image>\nWhat is this? <image>\n<image>\nSo?\n\n<|Assistant|>:"
    )
    assert [s.picture for s in segments if s.is_picture] == ["data:x", "b", "c"]


@pytest.mark.parametrize(
    ("message", "images", "pictures"),
    [
        (user("say <image> twice"), None, 0),
        (user("say <image> once"), [], 1),
        (user("say <image> once"), ["a"], 1),
        (user("say <image> once", images=["a"]), None, 1),
        (user([{"type": "text", "text": "say <image>"}]), ["a"], 0),
        (assistant("the <image> tag"), ["a"], 0),
    ],
)
def test_an_image_token_is_a_placeholder_only_when_pictures_are_spoken_of(message, images, pictures):
    segments = conversation_segments([message], images=images)
    assert sum(segment.is_picture for segment in segments) == pictures
    assert all("<image>" not in segment.text for segment in segments if not segment.is_picture)
    assert "".join(segment.text for segment in segments).count("<image>") == 1


def test_pictures_beside_the_conversation_win_over_those_in_it():
    segments = conversation_segments([user("<image>", images=["./a.png"])], images=["loaded"])
    assert [s.picture for s in fill_pictures(segments, ["loaded"], "here") if s.is_picture] == ["loaded"]


def test_counts_must_agree():
    segments = prompt_segments("<image> and <image>", images=["a"])
    assert count_open(segments) == 2
    with pytest.raises(RequestError, match="the prompt: 2 <image> placeholders but 1 picture; there must be as many"):
        fill_pictures(segments, ["a"], "the prompt")
    with pytest.raises(RequestError, match=r"messages\[0\]: 1 <image> placeholder but 2 pictures"):
        conversation_segments([user("<image>", images=["a", "b"])])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list of messages"),
        ("hello", "non-empty list of messages"),
        ([{"content": "x"}], r"messages\[0\] must be a mapping with 'role' and 'content'"),
        (["x"], r"messages\[0\] must be a mapping"),
        ([{"role": "robot", "content": "x"}], "has role 'robot': it must be one of system,"),
        ([user("x"), {"role": "system", "content": "y"}], r"must be the first, but it is messages\[1\]"),
        ([user(7)], r"messages\[0\].content must be a string or a list of parts, not 7"),
        ([user([{"type": "audio"}])], r"content\[0\] must be a part of type text, image_url or image"),
        ([user([{"type": "image_url"}])], "image_url part without a url"),
        ([assistant([{"type": "image", "image": "a"}])], "only a user may show pictures"),
    ],
)
def test_malformed_conversations_are_refused(messages, message):
    with pytest.raises(RequestError, match=message):
        conversation_segments(messages)


@given(st.lists(st.sampled_from(["a", " ", "<image>", "<", "image>", "\n"]), max_size=8))
def test_literal_tokens_survive_in_print_and_never_in_one_segment(parts):
    segments = prompt_segments("".join(parts))
    assert "".join(segment.text for segment in segments) == "".join(parts)
    assert all("<image>" not in segment.text for segment in segments)

"""The interactive session, its lines piped in: history, commands, refusals and Ctrl-C."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from modelwright.cli.conversation import Utterance
from modelwright.cli.interrupt import Interrupt
from modelwright.cli.session import Session, as_markdown, typed_paths
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.errors import RequestError
from modelwright.serving.answer import Answer, answer
from modelwright.serving.load import load
from modelwright.serving.opened import find_model
from modelwright.serving.prompts import encode_messages
from tests.checkpoints.tiny import PICTURE

CUT = "(the answer was cut at 4 tokens; --max-tokens allows more)\n"


class Echo:
    """Answers with the number of turns it was given; keeps them."""

    def __init__(self):
        self.heard: list[tuple[Utterance, ...]] = []

    def reply(self, said):
        self.heard.append(said)
        return Answer(f"answer {len(said)}", 1, 0.1, 0.1, None, interrupted=said[-1].text == "stop")


@pytest.fixture
def session(vl2):
    return Session(Echo(), replace(find_model(str(vl2)), name="tiny"))


def test_each_line_of_a_pipe_is_answered(run, vl2):
    ended = run("chat", vl2, "--max-new-tokens", 4, stdin="Hello\n\nWhat is it?\n")
    assert (ended.code, ended.err) == (0, CUT * 2)
    assert ended.out.count("\n") >= 2
    assert ended.out.startswith(run("chat", vl2, "Hello", "--max-new-tokens", 4).out)


def test_earlier_turns_are_part_of_the_next_question(session):
    session.take("one")
    session.take("two")
    assert [each.text for each in session.chat.heard[1]] == ["one", "answer 1", "two"]
    assert [each.role for each in session.said] == ["user", "assistant", "user", "assistant"]


def test_a_picture_goes_with_the_next_question_only(session):
    session.take(f"/image {PICTURE}")
    session.take("what is it?")
    session.take("and now?")
    first, _, second, _ = session.said
    assert (first.text, len(first.pictures)) == ("<image>\nwhat is it?", 1)
    assert (second.text, second.pictures) == ("and now?", ())


def test_clear_forgets_turns_and_pictures(session):
    session.take("one")
    session.take(f"/image {PICTURE}")
    session.take("/clear")
    session.take("two")
    assert session.chat.heard[-1] == (Utterance("user", "two"),)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/sing", "there is no command /sing; there are /image, /clear, /save, /help, /exit, /quit"),
        ("/image", "/image needs the path of a picture"),
        ("/image gone.png", "no such picture: gone.png"),
        ("/save a.txt", "/save needs a file that ends in .json or .md, got 'a.txt'"),
        ("/save", "/save needs a file that ends in .json or .md, got ''"),
        (
            "<image> what?",
            "the prompt: 1 <image> placeholder but 0 pictures; there must be as many of one as of the other",
        ),
    ],
)
def test_a_line_that_cannot_be_served_changes_nothing(session, line, sentence):
    session.take("one")
    before = (session.said, session.waiting)
    with pytest.raises(RequestError) as caught:
        session.take(line)
    assert str(caught.value) == sentence
    assert (session.said, session.waiting) == before


def test_a_session_goes_on_after_a_bad_line_and_ends_with_status_2(run, vl2):
    ended = run("chat", vl2, "--max-new-tokens", 4, stdin="/image gone.png\nHello\n")
    assert ended.code == 2
    assert ended.err == "modelwright: no such picture: gone.png\n" + CUT
    assert ended.out == run("chat", vl2, "Hello", "--max-new-tokens", 4).out


def test_a_conversation_that_outgrows_the_context_is_refused_and_can_be_cleared(run, vl2):
    ended = run("chat", vl2, "--max-new-tokens", 4, stdin=f"{'word ' * 200}\n/clear\nHello\n")
    assert "the prompt is 1007 tokens long and the model's context holds 512" in ended.err
    assert ended.out == run("chat", vl2, "Hello", "--max-new-tokens", 4).out


def test_a_text_only_session_takes_no_pictures(run, v2):
    ended = run("chat", v2, stdin=f"/image {PICTURE}\n")
    assert ended.err == f"modelwright: {v2} is a deepseek_v2 model, which reads text only, and it was given 1 picture\n"


def test_help_lists_the_commands(run, vl2):
    listed = run("chat", vl2, stdin="/help\n").err
    for command in ("/image PATH", "/clear", "/save FILE", "/help", "Ctrl-C", "Ctrl-D"):
        assert command in listed


def test_a_transcript_as_json_is_a_conversation_in_the_official_form(session, tmp_path):
    session.take(f"/image {PICTURE}")
    session.take("what is it?")
    session.take(f"/save {tmp_path / 'talk.json'}")
    assert json.loads((tmp_path / "talk.json").read_text("utf-8")) == {
        "model": "tiny",
        "messages": [
            {"role": "user", "content": "<image>\nwhat is it?", "images": [str(PICTURE)]},
            {"role": "assistant", "content": "answer 1", "images": []},
        ],
    }


def test_a_transcript_as_markdown(session, tmp_path):
    session.take("Hello 鸟")
    session.take(f"/save {tmp_path / 'talk.MD'}")
    text = (tmp_path / "talk.MD").read_text("utf-8")
    assert text == "# tiny\n\n## user\n\nHello 鸟\n\n## assistant\n\nanswer 1\n"
    assert as_markdown("m", ()) == "# m\n"


def test_a_transcript_that_cannot_be_written(session, tmp_path):
    with pytest.raises(RequestError, match=r"/save .*talk\.md: the file cannot be written: No such file or directory"):
        session.take(f"/save {tmp_path / 'gone' / 'talk.md'}")


def test_a_stopped_answer_stays_in_the_conversation(session, capsys):
    session.take("stop")
    assert session.said[-1] == Utterance("assistant", "answer 1")
    assert capsys.readouterr().err == "(stopped)\n"


@pytest.fixture
def chat(vl2):
    """The tiny model, its engine, and a question that it answers at length."""
    loaded = load(vl2)
    prompt = encode_messages(loaded, [{"role": "user", "content": "Hello"}])
    return Engine(loaded.model, tokenizer=loaded.tokenizer), prompt


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(chat):
    engine, prompt = chat
    pieces = []

    def interrupt_at_the_third(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    params = SamplingParams(temperature=0, max_tokens=30, skip_special_tokens=False)
    with Interrupt() as stop:
        said = answer(engine, prompt, params, interrupt_at_the_third, lambda: stop.asked)
    assert said.interrupted
    assert said.text == "".join(pieces).rstrip()
    assert said.tokens < 30
    assert not engine.has_work
    whole = answer(engine, prompt, params, lambda _: None)
    assert (whole.tokens, whole.interrupted) == (30, False)
    assert whole.text.startswith(said.text)


def test_a_second_ctrl_c_is_raised_and_the_handler_of_before_is_back(chat):
    engine, prompt = chat
    before = signal.getsignal(signal.SIGINT)

    def interrupt_twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Interrupt() as stop:
        answer(engine, prompt, SamplingParams(max_tokens=30), interrupt_twice, lambda: stop.asked)
    assert not engine.has_work
    assert signal.getsignal(signal.SIGINT) is before


def test_earlier_turns_are_found_in_the_pages(run, vl2):
    """Turn by turn: all full pages of what was asked and answered so far, of 16 tokens each."""
    question = "word " * 10
    lines = f"{question}\nAnd again\n/clear\n{question}\n"
    ended = run("chat", vl2, "--max-new-tokens", 20, "--stats", stdin=lines)
    prompts = [line for line in ended.err.splitlines() if line.startswith("prompt")]
    lengths = [int(re.search(r"(\d+) tokens", line)[1]) for line in prompts]
    found = [int(re.search(r"(\d+) found in the cache", line)[1]) for line in prompts]
    pages = (lengths[0] - 1) // 16
    assert pages >= 3
    assert found[0] == 0
    assert found[1] % 16 == 0 and 16 * pages <= found[1] < lengths[1]
    assert found[2] == 16 * pages


@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_a_session_ends_where_the_user_leaves(word, run, vl2):
    ended = run("chat", vl2, "--max-new-tokens", 4, stdin=f"{word}\nHello\n")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"', "{} ", "file://{}"])
def test_a_picture_is_found_as_its_path_was_typed_or_dropped(form, session, tmp_path, capsys):
    plain, spaced = tmp_path / "a.png", tmp_path / "my picture.png"
    for path in (plain, spaced):
        path.write_bytes(PICTURE.read_bytes())
    session.take(f"/image {form.format(plain)}")
    session.take(f"/image {form.format(spaced).replace('file://', 'file:')}")
    assert [picture.path for picture in session.waiting] == [plain, spaced]
    told = capsys.readouterr().err.splitlines()
    size = "{} x {} pixels".format(*session.waiting[0].image.size)
    assert told == [f"{path}: {size}, shown with the next question" for path in (plain, spaced)]


def test_paths_are_escaped_quoted_several_or_just_not_there(tmp_path):
    one, two = tmp_path / "one 1.png", tmp_path / "two.png"
    for path in (one, two):
        path.touch()
    backslashes = str(one).replace(" ", "\\ ")
    assert typed_paths(backslashes) == [one]
    assert typed_paths(f"{backslashes} '{two}'") == [one, two]
    assert typed_paths(f"file://{str(one).replace(' ', '%20')}") == [one]
    assert typed_paths("no such file.png") == [Path("no such file.png")]
    assert typed_paths("it's.png") == [Path("it's.png")]


def test_what_was_pasted_after_a_command_is_the_question(session):
    session.take(f"/image {PICTURE}\nwhat\nis it?")
    assert [(each.text, len(each.pictures)) for each in session.said[:1]] == [("<image>\nwhat\nis it?", 1)]

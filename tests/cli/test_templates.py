"""``--chat-template`` and a line's own fields for templates, in every command that prints messages."""

import json
import shutil
from typing import Any

import pytest

from modelwright.serving.load import load
from modelwright.serving.prompts import encode_messages
from tests.checkpoints.tiny import GOLDEN
from tests.llamas import tiny_llama

TEMPLATE = (
    "{{ messages[-1].content }}{% if mood %} ({{ mood }}){% endif %}{% for tool in tools or [] %} {{ tool.name }}"
    "{% endfor %}{% if add_generation_prompt %}!{% endif %}"
)
HELLO = [{"role": "user", "content": " Hello\n"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama whose folder brings no chat template."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama(vocab_size=429, bos_token_id=0, eos_token_id=1, seq_length=256).save_pretrained(folder)
    return shutil.copytree(GOLDEN / "tokenizer", folder, dirs_exist_ok=True)


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE, "utf-8")
    return path


def tokens(folder, text: str) -> int:
    return len(load(folder).tokenizer.encode(text, add_special_tokens=False))


def test_chat_is_refused_without_a_template_before_weights_are_read(run, llama, monkeypatch):
    monkeypatch.setattr("modelwright.cli.terminal.load", lambda *_: pytest.fail("read"))
    ended = run("chat", llama, "Hi")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"modelwright: {llama} has no chat template, neither chat_template.jinja nor ")
    assert "--chat-template FILE" in ended.err and ended.err.count("\n") == 1


def test_chat_with_a_file(run, llama, template):
    ended = run("chat", llama, "Hello", "--chat-template", template, "--json", "--max-new-tokens", 2)
    assert json.loads(ended.out)["usage"]["prompt_tokens"] == tokens(llama, "Hello!")


def test_chat_keeps_the_white_space_of_words_to_a_model_that_reads_text(run, llama, template, tmp_path, monkeypatch):
    asked: list[Any] = []

    def record(loaded, messages, how):
        asked.append(messages)
        return encode_messages(loaded, messages, how)

    monkeypatch.setattr("modelwright.cli.chat.encode_messages", record)
    how = ("--chat-template", template, "--max-new-tokens", 2)
    run("chat", llama, "\n Hello \n", "--system", " Be brief.\n", *how)
    assert asked[0] == [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "\n Hello \n"}]
    run("chat", llama, *how, stdin="  one \ntwo\n")
    assert [message["role"] for message in asked[2]] == ["user", "assistant", "user"]
    assert asked[1] == asked[2][:1] == [{"role": "user", "content": "  one "}]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("gone.jinja", "--chat-template gone.jinja: there is no such file"),
        ("tool_use", "--chat-template 'tool_use' is no template, and none is called so (there are none)"),
    ],
)
def test_a_file_that_is_not_there_and_a_name_that_none_has(run, llama, given, sentence):
    ended = run("chat", llama, "Hi", "--chat-template", given)
    assert (ended.code, ended.err) == (2, f"modelwright: {sentence}\n")


def test_lines_are_printed_by_the_file_and_by_their_own_fields(run, llama, template, tmp_path):
    lines = [
        {"messages": HELLO},
        {"messages": HELLO, "chat_template_kwargs": {"mood": "calm"}, "tools": [{"name": "sum"}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "It is"}]},
        {"messages": HELLO, "add_generation_prompt": False},
        {"messages": HELLO, "chat_template": "{{ messages | length }} said"},
        {"prompt": " Hello\n"},
    ]
    printed = [" Hello\n!", " Hello\n (calm) sum!", "It is", " Hello\n", "1 said", " Hello\n"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line | {"max_tokens": 1}) + "\n" for line in lines), "utf-8")
    command = ("generate", llama, "-i", source, "-o", target)
    assert run(*command, "--chat-template", template).code == 0
    answers = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [one["prompt_tokens"] for one in answers] == [tokens(llama, text) for text in printed]
    assert "is not the answer to line 1 of this input under these options" in run(*command).err
    ended = run(*command, "--overwrite")
    assert ended.code == 1
    errors = [json.loads(line).get("error", "") for line in target.read_text("utf-8").splitlines()]
    assert all(f"{llama} has no chat template" in error for error in errors[:4]) and errors[4:] == ["", ""]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            {"chat_template_kwargs": {"mod": 1}},
            "holds 'mod', which the chat template does not read; did you mean 'mood'?",
        ),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object, got [1]"),
        ({"chat_template_kwargs": {"tools": 1}}, "must not hold 'tools', which every template is given"),
        ({"tools": ["sum"]}, "tools must be a list of objects, got ['sum']"),
        ({"continue_final_message": 1}, "continue_final_message must be true or false, got 1"),
        ({"chat_template_kwarg": {}}, 'unknown field "chat_template_kwarg"; did you mean "chat_template_kwargs"?'),
    ],
)
def test_a_line_that_asks_for_what_cannot_be_printed(run, llama, template, tmp_path, line, sentence):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": HELLO} | line) + "\n", "utf-8")
    ended = run("generate", llama, "-i", source, "-o", "-", "--chat-template", template)
    assert sentence in json.loads(ended.out)["error"] and ended.code == 1


def test_fields_for_messages_have_no_place_beside_a_prompt(run, llama, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "Hi", "tools": []}\n', "utf-8")
    ended = run("generate", llama, "-i", source, "-o", "-")
    said = "line 1: tools says how messages are printed, and the line has none"
    assert json.loads(ended.out)["error"] == said


def test_bench_prints_messages_by_the_file(run, llama, template, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": HELLO}) + "\n", "utf-8")
    brief = ("--output-len", 1, "--warmup", 0, "--repeats", 1, "--json", "--chat-template", template)
    ended = run("bench", "latency", llama, "--input", source, *brief)
    assert json.loads(ended.out)["prompt_tokens"] == tokens(llama, " Hello\n!")
    assert "needs --input" in run("bench", "latency", llama, *brief).err

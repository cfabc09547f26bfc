"""Which chat template is meant, what it reads, and where a folder keeps its templates: as transformers has it."""

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from modelwright.errors import CheckpointError, RequestError
from modelwright.processing.templates import Rendering, check_variables, pick_template, render, turn_end, words_in
from modelwright.processing.tokenizer import read_chat_templates, read_fast_tokenizer
from tests.checkpoints.tiny import GOLDEN

CHATML = (
    "{% for message in messages %}{{ '<|User|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|User|>assistant\n' }}{% endif %}"
)
TRIMMED = CHATML.replace("message['content']", "message['content'] | trim")
SAID = [{"role": "user", "content": "  two blanks first, a line last\n"}, {"role": "assistant", "content": " Well, "}]


@pytest.fixture
def tokenizer_folder(tmp_path):
    return shutil.copytree(GOLDEN / "tokenizer", tmp_path / "model")


def put(folder, name, text):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, "utf-8")


def test_templates_are_found_where_transformers_finds_them(tokenizer_folder):
    folder = tokenizer_folder
    assert read_chat_templates(folder) is None
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    for entry, wanted in (
        ("{{ 1 }}", "{{ 1 }}"),
        ([{"name": "default", "template": "{{ 1 }}"}], "{{ 1 }}"),
        ([{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}], None),
        ({"default": "{{ 1 }}", "rag": "{{ 3 }}"}, None),
    ):
        put(folder, "tokenizer_config.json", json.dumps(settings | {"chat_template": entry}))
        theirs = AutoTokenizer.from_pretrained(folder).get_chat_template()
        assert pick_template(read_chat_templates(folder), None, False) == theirs
        assert wanted is None or read_chat_templates(folder) == wanted
        assert pick_template(read_fast_tokenizer(folder).chat_template, None, False) == theirs
    put(folder, "additional_chat_templates/tool_use.jinja", "{{ 5 }}")
    put(folder, "chat_template.jinja", "{{ 4 }}")  # which comes before the entry
    named = read_chat_templates(folder)
    assert named == AutoTokenizer.from_pretrained(folder).chat_template == {"default": "{{ 4 }}", "tool_use": "{{ 5 }}"}
    assert pick_template(named, None, True) == "{{ 5 }}" == pick_template(named, "tool_use", False)


def test_a_template_beside_the_tokenizers_own_folder_counts(tmp_path):
    shutil.copytree(GOLDEN / "tokenizer", tmp_path / "tokenizer")
    put(tmp_path, "chat_template.jinja", "{{ 4 }}")
    assert read_chat_templates(tmp_path) == "{{ 4 }}" == read_fast_tokenizer(tmp_path).chat_template


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
@pytest.mark.parametrize("said", [SAID[:1], SAID, [*SAID, SAID[0]], [SAID[0], {"role": "assistant", "content": ""}]])
def test_messages_are_printed_as_transformers_pipeline_prints_them(tokenizer_folder, template, said):
    tokenizer = read_fast_tokenizer(tokenizer_folder)
    continued = said[-1]["role"] == "assistant"
    wanted = AutoTokenizer.from_pretrained(tokenizer_folder).apply_chat_template(
        said,
        chat_template=template,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        tokenize=False,
    )
    assert render(tokenizer, template, said, Rendering()) == wanted
    if continued:
        assert wanted.rstrip().endswith(said[-1]["content"].strip() or "assistant")
        closed = render(tokenizer, template, said, Rendering(add_generation_prompt=True))
        assert closed.endswith("<｜end▁of▁sentence｜>\n<|User|>assistant\n")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, 1),
        ("{% for m in messages %}{{ m.content }}  <｜▁pad▁｜>\n{% endfor %}", 2),  # Llama 2 has a blank before it
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<｜▁pad▁｜>{% endfor %}", 2),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }}###<｜▁pad▁｜>{% endfor %}", None),
        ("{% for m in messages %}{{ raise_exception('only questions') if m.role == 'assistant' }}{% endfor %}", None),
        ("<｜▁pad▁｜> and no messages", None),
    ],
)
def test_a_turn_ends_at_the_token_behind_an_answers_words(tokenizer_folder, template, end):
    assert turn_end(read_fast_tokenizer(tokenizer_folder), template) == end


def test_variables_reach_the_template_and_unknown_ones_are_refused(tokenizer_folder):
    tokenizer = read_fast_tokenizer(tokenizer_folder)
    template = "{% if enable_thinking %}think {% endif %}{{ messages[0].content }}"
    assert render(tokenizer, template, SAID[:1], Rendering(variables={"enable_thinking": True}))[:6] == "think "
    with pytest.raises(RequestError, match=r"holds 'enable_thinkin'.* does not read; did you mean 'enable_thinking'\?"):
        check_variables(template, {"enable_thinkin": True})
    with pytest.raises(RequestError, match="must not hold 'messages', which every template is given"):
        check_variables(template, {"messages": []})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system here') }}", "cannot print these messages: no system here"),
        ("{% for %}", "is no Jinja: line 1: "),
        ("{{ messages[0].content + 1 }}", "cannot print these messages: "),
        ("{{ messages[0].nothing.at_all }}", "cannot print these messages: .* has no attribute 'nothing'"),
    ],
)
def test_a_template_that_fails_is_a_sentence(tokenizer_folder, template, said):
    with pytest.raises(RequestError, match=said):
        render(read_fast_tokenizer(tokenizer_folder), template, SAID[:1], Rendering())


def test_names_of_templates(tokenizer_folder):
    named = {"rag": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    with pytest.raises(RequestError, match=r"must name one of several templates, .* called default: rag, tool_use"):
        pick_template(named, None, False)
    with pytest.raises(
        RequestError, match=r"tool_us' is no template, .* \(there are rag, tool_use\): did you mean tool"
    ):
        pick_template(named, "tool_us", False)
    assert pick_template(None, None, False) is None and pick_template(None, "{{ 3 }}", False) == "{{ 3 }}"


def test_literals_of_a_template_with_marks_of_generation():
    words = words_in("{% if message.role == 'robot' %}{% generation %}{{ 'x' }}{%- endgeneration -%}{% endif %}")
    assert words == {"robot", "x"}


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_what_a_template_does_not_read_is_not_given_in_vain(tokenizer_folder, name):
    tokenizer = read_fast_tokenizer(tokenizer_folder)
    with pytest.raises(RequestError, match=f"^{name} are given, and the chat template does not read them$"):
        render(tokenizer, CHATML, SAID[:1], replace(Rendering(), **{name: [{"name": "sum"}]}))
    assert render(tokenizer, CHATML, SAID[:1], replace(Rendering(), **{name: []}))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, and holds a list"),
        (
            "tokenizer_config.json",
            '{"chat_template": 7}',
            "chat_template must be a text or a list of name",
        ),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "chat_template must be a text or a list"),
        ("chat_template.jinja", b"\xff\xfe\xfa", "cannot be read: 'utf-8' codec"),
    ],
)
def test_files_that_hold_no_template(tokenizer_folder, name, content, said):
    path = tokenizer_folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=said):
        read_chat_templates(tokenizer_folder)

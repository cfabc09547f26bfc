"""Messages to prompts: the processor's for models that see, the chat format's tokens for models that read text."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.errors import RequestError
from modelwright.families.deepseek_v2 import CHAT_TEMPLATE
from modelwright.serving.load import load, load_network
from modelwright.serving.prompts import (
    IMAGE,
    Rendering,
    encode_messages,
    encode_text,
    read_template,
    require_template,
)
from tests.checkpoints.tiny import GOLDEN, PICTURE
from tests.llamas import tiny_llama

QUESTION = {"role": "user", "content": "What is it?"}
SHOWN = QUESTION | {"images": [str(PICTURE)]}
PARTS = {"role": "user", "content": [{"type": "image", "path": str(PICTURE)}, {"type": "text", "text": "What is it?"}]}


@pytest.fixture(scope="module")
def sees(vl2):
    return load_network(find_checkpoint(vl2))


CHATML = (
    "{% for message in messages %}{{ '<|User|>' + message['role'] + '\n' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|User|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def bare_llama(tmp_path_factory):
    """A Llama whose folder brings no chat template."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_llama(vocab_size=429, bos_token_id=0, eos_token_id=1).save_pretrained(folder)
    shutil.copytree(GOLDEN / "tokenizer", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def chats(bare_llama, tmp_path_factory):
    folder = shutil.copytree(bare_llama, tmp_path_factory.mktemp("chat") / "llama")
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    return load_network(find_checkpoint(folder))


@pytest.fixture(scope="module")
def theirs(chats, tmp_path_factory):
    """transformers' tokenizer of the same files.

    They name ``LlamaTokenizerFast``, as DeepSeek's do, and hold a ByteLevel one. transformers 5.24 reads what they
    hold, whatever they name; 5.17 makes a SentencePiece one of them unless they name the class that reads.
    """
    folder = shutil.copytree(chats.checkpoint.folder, tmp_path_factory.mktemp("theirs") / "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reads(v2):
    return load_network(find_checkpoint(v2))


@pytest.mark.parametrize(
    "messages",
    [
        [QUESTION],
        [SHOWN],
        [SHOWN | {"content": f"Look: {IMAGE}\nwhat?"}],
        [{"role": "system", "content": "Be brief."}, SHOWN, {"role": "assistant", "content": "A cup."}, QUESTION],
    ],
)
def test_prompts_are_those_of_the_processor(sees, vl2, messages):
    """The oracle is transformers' processor, asked with the placeholders that we put in."""
    placed = [
        message | {"content": f"{IMAGE}\n{message['content']}"}
        if "images" in message and IMAGE not in message["content"]
        else message
        for message in messages
    ]
    wanted = load(vl2).processor.process_one(placed)
    prompt = encode_messages(sees, messages)
    assert (prompt.text, prompt.num_image_tokens) == (wanted.text, wanted.num_image_tokens)
    for name in ("input_ids", "labels", "images_seq_mask", "images", "images_spatial_crop"):
        assert np.array_equal(getattr(prompt, name), getattr(wanted, name)), name


def test_both_forms_of_messages_are_one_prompt(sees):
    assert encode_messages(sees, [SHOWN]).input_ids.tolist() == encode_messages(sees, [PARTS]).input_ids.tolist()


def test_text_models_read_deepseeks_format_unless_they_have_a_template(reads):
    tokenizer = reads.tokenizer
    ids = tokenizer.encode("<｜begin▁of▁sentence｜>User: What is it?\n\nAssistant:", add_special_tokens=False)
    prompt = encode_messages(reads, [QUESTION])
    assert (prompt.input_ids.tolist(), prompt.picture_tokens) == (ids, 0)
    assert encode_text(reads, "Hello").input_ids.tolist() == tokenizer.encode("Hello")


@pytest.mark.parametrize("messages", ["Hello", [], ["Hello"], {"role": "user", "content": "Hello"}, None])
def test_what_is_no_conversation_is_refused(reads, sees, messages):
    for loaded in (reads, sees):
        with pytest.raises(RequestError, match=r"messages must be a list of objects|must be a non-empty list"):
            encode_messages(loaded, messages)


def test_pictures_are_refused_where_nothing_sees_and_where_they_are_no_list(reads, sees):
    with pytest.raises(RequestError, match="a deepseek_v2 model reads text only, and the messages show pictures"):
        encode_messages(reads, [PARTS])
    with pytest.raises(RequestError, match=r"the images of a message must be a list of paths, got 'a\.png'"):
        encode_messages(sees, [QUESTION | {"images": "a.png"}])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "\n  two blanks and a line \n"}],
        [
            {"role": "system", "content": " Be brief.\n"},
            QUESTION,
            {"role": "assistant", "content": " A cup. "},
            QUESTION,
        ],
        [QUESTION, {"role": "assistant", "content": "It is a"}],
        [QUESTION, {"role": "assistant", "content": " It is a "}],
        [QUESTION, {"role": "assistant", "content": ""}],
        [QUESTION, {"role": "tool", "content": "7", "tool_call_id": "x"}],
    ],
)
def test_words_are_kept_as_they_are_and_the_assistants_are_continued(chats, theirs, reads, messages):
    """The oracle is transformers' tokenizer, called as its pipeline calls it."""
    continued = messages[-1]["role"] == "assistant"
    how = {"add_generation_prompt": not continued, "continue_final_message": continued, "return_dict": False}
    assert encode_messages(chats, messages).input_ids.tolist() == theirs.apply_chat_template(messages, **how)
    own = reads.tokenizer.apply_chat_template(messages, chat_template=CHAT_TEMPLATE, **how)
    assert encode_messages(reads, messages).input_ids.tolist() == own


def test_words_of_an_assistant_are_continued_by_a_model_that_sees(sees, vl2):
    said = [SHOWN, {"role": "assistant", "content": "A red"}]
    prompt = encode_messages(sees, said)
    assert prompt.text.endswith("<|Assistant|>:A red") and prompt.input_ids[-1] != sees.tokenizer.eos_token_id
    closed = encode_messages(sees, said, Rendering(continue_final_message=False))
    assert closed.text == prompt.text + "<｜end▁of▁sentence｜>" and closed.input_ids.tolist()[:-1] == [
        *prompt.input_ids.tolist()
    ]


def test_a_model_without_a_template_gets_nobody_elses(bare_llama):
    loaded = load_network(find_checkpoint(bare_llama))
    said = f"{bare_llama} has no chat template, neither chat_template.jinja nor .*: give one with --chat-template FILE"
    for ask in (lambda: encode_messages(loaded, [QUESTION]), lambda: require_template(loaded.checkpoint, None)):
        with pytest.raises(RequestError, match=said):
            ask()
    given = encode_messages(loaded, [QUESTION], Rendering(chat_template=CHATML))
    assert given.text == "<|User|>user\nWhat is it?<｜end▁of▁sentence｜><|User|>assistant\n"
    require_template(loaded.checkpoint, CHATML)


def test_parts_of_words_tools_documents_and_variables_reach_the_template(chats):
    parts = {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b\n"}, "c"]}
    assert "user\n a b\nc<｜end" in encode_messages(chats, [parts]).text
    template = "{{ tools[0].name }} {{ documents[0].title }} {{ mood }} {{ messages[-1].tool_calls[0].id }}"
    call = {"role": "assistant", "tool_calls": [{"id": "t1"}]}
    how = Rendering(template, [{"name": "sum"}], [{"title": "T"}], {"mood": "calm"}, continue_final_message=False)
    assert encode_messages(chats, [QUESTION, call], how).text == "sum T calm t1"


def test_a_template_that_names_a_role_knows_it_and_other_roles_are_refused(chats):
    critic = [{"role": "critic", "content": "Bad."}]
    with pytest.raises(
        RequestError, match=r"messages\[0\] has role 'critic': it must be one of system, developer, user"
    ):
        encode_messages(chats, critic)
    named = Rendering("{% if messages[0].role == 'critic' %}yes{% endif %}")
    assert encode_messages(chats, critic, named).text == "yes"


def test_pictures_are_placed_by_a_chat_template_too(sees):
    """The model's own template, given as if it were another, prints the same conversation."""
    template = sees.tokenizer.chat_template
    literal = {"role": "user", "content": [{"type": "text", "text": "What does <image> mean?"}, PARTS["content"][0]]}
    for messages in (
        [SHOWN],
        [PARTS],
        [QUESTION],
        [literal],
        [SHOWN, {"role": "assistant", "content": "A cup <image>"}],
    ):
        plain, printed = encode_messages(sees, messages), encode_messages(sees, messages, Rendering(template))
        assert (printed.text, printed.num_image_tokens) == (plain.text, plain.num_image_tokens)
        for name in ("input_ids", "images_seq_mask", "images", "images_spatial_crop"):
            assert np.array_equal(getattr(printed, name), getattr(plain, name)), name
    with pytest.raises(RequestError, match="what the chat template prints: 0 <image> placeholders but 1 picture"):
        encode_messages(sees, [SHOWN], Rendering("{{ 'words' }}"))


def test_a_template_is_a_file_or_a_name(tmp_path):
    (tmp_path / "mine.jinja").write_text("\ufeff{{ 1 }}", "utf-8")
    assert read_template(str(tmp_path / "mine.jinja")) == "{{ 1 }}"
    assert (read_template(None), read_template("tool_use")) == (None, "tool_use")
    for missing in ("gone.jinja", str(tmp_path / "gone"), "./gone"):
        with pytest.raises(RequestError, match=r"^chat_template .*: there is no such file"):
            read_template(missing)
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RequestError, match=r"bytes\.jinja cannot be read"):
        read_template(str(tmp_path / "bytes.jinja"))


@pytest.mark.parametrize("begins", [True, False])
def test_text_gets_the_mark_that_its_tokenizer_asks_for_once(v2, tmp_path, begins):
    folder = shutil.copytree(v2, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": begins}), "utf-8")
    loaded = load_network(find_checkpoint(folder))
    bare = loaded.tokenizer.encode("Hello", add_special_tokens=False)
    assert encode_text(loaded, "Hello").input_ids.tolist() == [0] * begins + bare
    assert encode_text(loaded, "<｜begin▁of▁sentence｜>Hello").input_ids.tolist() == [0, *bare]
    said = encode_messages(loaded, [QUESTION]).input_ids.tolist()
    assert said.count(0) == 1 and said[0] == 0

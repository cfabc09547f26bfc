"""Messages to prompts: the processor's for models that see, the chat format's tokens for models that read text."""

import numpy as np
import pytest

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.errors import RequestError
from modelwright.serving.load import load, load_network
from modelwright.serving.prompts import IMAGE, encode_messages, encode_text
from tests.checkpoints.tiny import PICTURE

QUESTION = {"role": "user", "content": "What is it?"}
SHOWN = QUESTION | {"images": [str(PICTURE)]}
PARTS = {"role": "user", "content": [{"type": "image", "path": str(PICTURE)}, {"type": "text", "text": "What is it?"}]}


@pytest.fixture(scope="module")
def sees(vl2):
    return load_network(find_checkpoint(vl2))


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

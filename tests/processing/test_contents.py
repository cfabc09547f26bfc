"""Contents reach a chat template in the form that it prints, as transformers prints that form."""

import pytest
from transformers import AutoTokenizer

from modelwright import zoo
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.processing.templates import Rendering, render

THROUGH_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<image>{% endif %}{% endfor %}\n{% endfor %}"
)
FIRST_PART = "{% for m in messages %}<{{ m.role }}>{{ m['content'][0]['text'] + '\n' }}{% endfor %}"
TEXTS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEXTS_THAT_RAISE = "{% for m in messages %}<{{ m.role }}>{{ m.content + '\n' }}{% endfor %}"
BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}\n{% endfor %}"
)
SYSTEM_AS_TEXT = "{{ messages[0].content + '\n' }}{% set messages = messages[1:] %}" + THROUGH_PARTS
WORDS = ["Be brief.", "user", "Hi.", "{% for %} <image>?"]
ROLES = ["system", "user", "assistant", "user"]
CLOSED = Rendering(add_generation_prompt=False, continue_final_message=False)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))


def in_parts(words):
    return [{"type": "text", "text": words}]


def said(form):
    return [{"role": role, "content": form(words)} for role, words in zip(ROLES, WORDS, strict=True)]


@pytest.mark.parametrize("given", [str, in_parts], ids=["texts", "parts"])
@pytest.mark.parametrize(
    ("template", "form"),
    [(THROUGH_PARTS, in_parts), (FIRST_PART, in_parts), (TEXTS, str), (TEXTS_THAT_RAISE, str), (BOTH, None)],
    ids=["through parts", "first part", "texts", "texts that raise", "both"],
)
def test_words_are_printed_whichever_form_a_template_is_written_for(tokenizer, template, form, given):
    wanted = tokenizer.apply_chat_template(said(form or given), chat_template=template, tokenize=False)
    assert all(words in wanted for words in WORDS)
    assert render(tokenizer, template, said(given), CLOSED) == wanted


def test_each_message_has_the_form_that_the_template_prints_of_it(tokenizer):
    mixed = [{"role": "system", "content": WORDS[0]}, *said(in_parts)[1:]]
    wanted = tokenizer.apply_chat_template(mixed, chat_template=SYSTEM_AS_TEXT, tokenize=False)
    assert render(tokenizer, SYSTEM_AS_TEXT, said(str), CLOSED) == wanted
    assert render(tokenizer, SYSTEM_AS_TEXT, mixed, CLOSED) == wanted


def test_a_last_answer_stays_open_in_either_form(tokenizer):
    for template, form, given in ((THROUGH_PARTS, in_parts, str), (TEXTS, str, in_parts)):
        wanted = tokenizer.apply_chat_template(
            said(form)[:3], chat_template=template, continue_final_message=True, tokenize=False
        )
        assert wanted.endswith("<assistant>Hi.")
        assert render(tokenizer, template, said(given)[:3], Rendering()) == wanted


def test_messages_without_words_stay_as_they_are(tokenizer):
    for content in ("", [], [{"type": "image"}]):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
        template = "{{ messages[0].content }}{{ messages[1].content is string }}"
        found = render(tokenizer, template, messages, CLOSED)
        assert found == f"Hi{isinstance(content, str)}"


@pytest.mark.parametrize("template", [THROUGH_PARTS, TEXTS], ids=["parts", "texts"])
def test_pictures_keep_their_places_in_the_other_form(template):
    processor = DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano"))
    picture = "examples/pictures/shapes.png"
    text = [{"role": "user", "content": "<image>\nHow many?", "images": [picture]}]
    parts = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "How many?"}]}]
    how = Rendering(chat_template=template)
    one, other = (processor.process_messages(each, how) for each in (text, parts))
    assert one.text.replace("\n", "") == other.text.replace("\n", "") == "<｜begin▁of▁sentence｜><user><image>How many?"
    assert one.images.shape == other.images.shape and one.num_image_tokens == other.num_image_tokens

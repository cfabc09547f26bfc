"""The bytes of the tokens of a text, one after the other, are the text's."""

import pytest

from modelwright.server.token_texts import TokenTexts
from tests.engine.small_tokenizers import byte_tokenizer, encode, sentencepiece_tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_tokenizer], ids=["bytes", "pieces"])
@pytest.mark.parametrize("text", ["good day!", "é 😀\n", "tab\there"])
def test_bytes_add_up(make, text):
    tokenizer = make()
    texts = TokenTexts(tokenizer.backend_tokenizer)
    said = b"".join(bytes(texts.of(id_)[1]) for id_ in encode(tokenizer, text))
    assert said.decode().lstrip() == text


def test_a_part_of_a_character_is_bytes_and_a_placeholder():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer.backend_tokenizer)
    ids = encode(tokenizer, "é")
    assert [texts.of(id_) for id_ in ids] == [("\ufffd", [0xC3]), ("\ufffd", [0xA9])]


def test_special_tokens_are_their_names_and_what_is_none_is_nothing():
    tokenizer = byte_tokenizer()
    texts = TokenTexts(tokenizer.backend_tokenizer)
    tag = tokenizer.convert_tokens_to_ids("<tag>")
    assert texts.of(tag) == ("<tag>", list(b"<tag>")) and texts.of(10**6) == ("", [])

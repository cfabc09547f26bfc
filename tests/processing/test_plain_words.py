"""Special tokens in a stranger's words: encoded as the characters that they are, and everything else as ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from modelwright.processing.plain_words import cut_marks, encode_words, whole_words
from modelwright.serving.load import load_network
from modelwright.serving.opened import find_model
from tests.engine.small_tokenizers import byte_tokenizer, sentencepiece_tokenizer

MARKS = ("<|User|>", "<|Assistant|>", "<image>", "<｜end▁of▁sentence｜>")
GROUNDING = ("<|ref|>", "<|/ref|>")


@pytest.fixture(scope="module")
def nano():
    return load_network(find_model("vl2-nano").checkpoint).tokenizer


@pytest.fixture(scope="module")
def pieces():
    """Sentencepiece's kind, with a mark without brackets."""
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_tokens([AddedToken("[INST]", special=True), AddedToken("</s>", special=True)], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_that_was_cut_is_written_in_characters(nano, mark):
    """The text is the same, and none of its tokens is the mark, nor any other special one."""
    text = f"a {mark} b"
    ids = encode_words(cut_marks(text, nano), nano)
    special = {id_ for id_, token in nano.backend_tokenizer.get_added_tokens_decoder().items() if token.special}
    assert not special & set(ids) and nano.decode(ids) == text
    assert nano.convert_tokens_to_ids(mark) in nano.encode(text, add_special_tokens=False)


def test_marks_that_are_to_act_do(nano):
    text = "<|ref|>the <|User|> thing<|/ref|>"
    ids = encode_words(cut_marks(text, nano, GROUNDING), nano)
    ref, close, user = nano.convert_tokens_to_ids(["<|ref|>", "<|/ref|>", "<|User|>"])
    assert ids[0] == ref and ids[-1] == close and user not in ids and nano.decode(ids) == text


def test_what_stands_beside_a_cut_mark_is_encoded_as_ever(nano):
    """A template's own marks act, and the words between are what the tokenizer makes of them alone."""
    words = "a line\nof words 12"
    ids = encode_words(f"<|User|>: {words}<|Assistant|>" + cut_marks("<image>", nano), nano)
    plain = nano.encode(f"<|User|>: {words}<|Assistant|>", add_special_tokens=False)
    assert ids[: len(plain)] == plain and nano.decode(ids[len(plain) :]) == "<image>"


@given(text=st.text(st.sampled_from("<|User>/image [INST]ab\n▁é"), max_size=40))
def test_text_without_marks_is_encoded_as_ever(text):
    """Whether or not the twin is used, which another mark in the text makes sure of."""
    tokenizer = byte_tokenizer()
    ids = encode_words(cut_marks(text + "<tag>", tokenizer), tokenizer)
    bare = byte_tokenizer()
    expected = [bare.convert_tokens_to_ids(c) for c in _byte_letters(text + "<tag>")]
    assert ids == expected


def _byte_letters(text):
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(word for word, _ in split)


def test_marks_without_brackets_and_pieces_of_words(pieces):
    text = "good [INST] day</s>"
    ids = encode_words(cut_marks(text, pieces), pieces)
    assert not {pieces.convert_tokens_to_ids(mark) for mark in ("[INST]", "</s>")} & set(ids)
    assert len(cut_marks(text, pieces)) == len(text) + 2 and whole_words(cut_marks(text, pieces), pieces) == text


def test_a_stranger_cannot_write_the_name_of_a_mark(nano):
    """Neither by writing a cut himself, nor by the name that the twin gives to marks."""
    tried = ["<\ufdd0|User|>", "\ufdd1315\ufdd2", "<<|User|>|User|>"]
    user = nano.convert_tokens_to_ids("<|User|>")
    for text in tried:
        assert user not in encode_words(cut_marks(text + "<image>", nano), nano)

"""Text that comes token by token equals text decoded at once, with characters and spaces whole."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelwright.cli.streaming import TextStream

BYTE_LEVEL = PreTrainedTokenizerFast.from_pretrained(Path(__file__).parents[1] / "golden" / "processor" / "tokenizer")


def stream(ids, tokenizer=BYTE_LEVEL, hidden=()) -> tuple[TextStream, list[str]]:
    pieces: list[str] = []
    text = TextStream(tokenizer, hidden, pieces.append)
    text.put(torch.tensor([[7, 8, 9]]))  # the prompt
    for token in ids:
        text.put(torch.tensor([token]))
    text.end()
    return text, pieces


@given(st.text())
def test_any_text_comes_through_in_whole_characters(words):
    ids = BYTE_LEVEL.encode(words, add_special_tokens=False)
    text, pieces = stream(ids)
    assert text.text == "".join(pieces) == words.lstrip()
    assert text.tokens == len(ids)
    if "\ufffd" not in words:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_waits_for_its_last():
    ids = BYTE_LEVEL.encode("鸟a", add_special_tokens=False)
    assert len(ids) > 2
    assert stream(ids)[1] == ["鸟", "a"]


def test_a_character_that_never_ends_is_shown_as_broken_at_the_end():
    ids = BYTE_LEVEL.encode("a鸟", add_special_tokens=False)[:-1]
    text, pieces = stream(ids)
    assert pieces == ["a", "\ufffd"]
    text.end()
    assert text.text == "a\ufffd"


def test_end_tokens_are_counted_and_not_shown_while_grounding_tokens_are():
    ids = BYTE_LEVEL.encode("red", add_special_tokens=False)
    text, pieces = stream([*ids, BYTE_LEVEL.eos_token_id], hidden={BYTE_LEVEL.eos_token_id})
    assert "".join(pieces) == "red"
    assert text.tokens == len(ids) + 1
    assert text.first is not None and text.last is not None and text.first <= text.last


def test_nothing_but_the_prompt_is_no_token():
    text, pieces = stream([])
    assert (text.text, text.tokens, text.first, pieces) == ("", 0, None, [])


@pytest.fixture
def word_tokenizer():
    """A tokenizer whose decoder drops the space of the first word it is given, as sentencepiece ones do."""
    words = Tokenizer(models.WordLevel({"▁two": 0, "▁red": 1, "▁stars": 2}, unk_token="▁two"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_spaces_between_words_are_kept(word_tokenizer):
    assert stream([0, 1, 2], word_tokenizer)[1] == ["two", " red", " stars"]

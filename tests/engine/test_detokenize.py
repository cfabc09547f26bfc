"""Text piece by piece equals text at once, characters are whole, and stop texts are found at every split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modelwright import zoo
from modelwright.engine.detokenize import Detokenizer, StopTexts
from tests.engine.small_tokenizers import byte_tokenizer, encode, sentencepiece_tokenizer

TEXTS = ["plain words", "naïve café", "你好，世界", "🙂🦊👩‍👩‍👧 done", " leading", "a\n\nb", "ไทย e\u0301"]


BYTES, PIECES = byte_tokenizer(), sentencepiece_tokenizer()
NANO = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))


def pieces_of(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.feed([id_]) for id_ in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTES, NANO], ids=["bytes", "nano"])
def test_pieces_make_the_text_and_hold_whole_characters(tokenizer, text):
    pieces = pieces_of(Detokenizer(tokenizer), encode(tokenizer, text))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)


def test_a_character_comes_with_its_last_byte():
    ids = encode(BYTES, "a🙂b")
    assert pieces_of(Detokenizer(BYTES), ids) == ["a", "", "", "", "🙂", "b", ""]


def test_sentencepiece_words_and_bytes():
    vocabulary = PIECES.get_vocab()
    words = ["▁good", "▁day", "ly", "<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "<0xA5>", "<0xBD>", "!"]
    ids = [vocabulary[word] for word in words]
    assert pieces_of(Detokenizer(PIECES), ids) == ["good", " day", "ly", "", "", "你", "", "", "好", "!", ""]
    context = [vocabulary["▁good"]]
    assert pieces_of(Detokenizer(PIECES, context=context), [vocabulary["▁day"]]) == [" day", ""]


def test_a_newline_that_is_a_byte_may_stand_before_bytes_of_a_character():
    """``tokenizers``' ``DecodeStream`` raises here: the run of bytes is no text until its last one has come."""
    ids = [PIECES.get_vocab()[f"<0x{byte:02X}>"] for byte in "\n🙂".encode()]
    assert pieces_of(Detokenizer(PIECES), ids) == ["\n", "", "", "", "🙂", ""]


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=30), st.data())
def test_any_bytes_give_the_text_that_decoding_at_once_gives(ids, data):
    """Broken characters too, however many tokens come at a time."""
    detokenizer, text, left = Detokenizer(BYTES, skip_special_tokens=False), "", ids
    while left:
        count = data.draw(st.integers(1, len(left)))
        text += detokenizer.feed(left[:count])
        left = left[count:]
    assert text + detokenizer.finish() == BYTES.decode(ids, clean_up_tokenization_spaces=False)
    assert detokenizer.finish() == "" and detokenizer.feed([]) == ""


def test_a_context_may_end_within_a_character():
    ids = encode(BYTES, "xy你好")
    for cut in range(1, len(ids)):
        pieces = pieces_of(Detokenizer(BYTES, context=ids[:cut]), ids[cut:])
        assert "".join(pieces) == "xy你好"[len(BYTES.decode(ids[:cut]).rstrip("\ufffd")) :]
    assert Detokenizer(BYTES, context=ids[:3]).finish() == ""


def test_special_and_hidden_tokens_are_left_out():
    tag, end = BYTES.convert_tokens_to_ids("<tag>"), BYTES.eos_token_id
    ids = [*encode(BYTES, "a"), tag, *encode(BYTES, "b"), end]
    assert "".join(pieces_of(Detokenizer(BYTES), ids)) == "ab"
    assert "".join(pieces_of(Detokenizer(BYTES, skip_special_tokens=False), ids)) == "a<tag>b<end>"
    assert "".join(pieces_of(Detokenizer(BYTES, skip_special_tokens=False, hidden={end}), ids)) == "a<tag>b"


def stopped(pieces: list[str], stops: list[str], include: bool = False) -> tuple[str, str | None]:
    finder = StopTexts(stops, include)
    text = "".join([*map(finder.feed, pieces), finder.finish()])
    return text, finder.found


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    ("text", "stops", "before", "found"),
    [
        ("one. END two", ["END"], "one. ", "END"),
        ("aaab", ["aab"], "a", "aab"),
        ("ababac", ["abac"], "ab", "abac"),
        ("xabcd", ["bcd", "c"], "xab", "c"),
        ("xabcd", ["cd", "bcd"], "xa", "bcd"),
        ("xabc", ["ab", "abc"], "x", "ab"),
        ("你好🙂", ["好🙂"], "你", "好🙂"),
        ("nothing here", ["her!", "NO"], "nothing here", None),
        ("ends like a sto", ["stop"], "ends like a sto", None),
    ],
)
def test_stop_texts_are_found_at_every_split(text, stops, before, found, include):
    expected = before + (found if include and found else "")
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert stopped(pieces, stops, include) == (expected, found)
    assert stopped(list(text), stops, include) == (expected, found)


def test_what_may_begin_a_stop_text_is_held_back_and_no_more():
    finder = StopTexts(["stop", "###"])
    fed = ["a s", "to", "ne #", "#x", "# stop more", "after"]
    assert [finder.feed(piece) for piece in fed] == ["a ", "", "stone ", "##x", "# ", ""]
    assert finder.found == "stop" and finder.finish() == ""


def test_a_stop_text_that_does_not_count_yet_is_text():
    finder = StopTexts(["ab"])
    assert finder.feed("xab", counts=False) + finder.feed("a", counts=False) == "xab"
    assert finder.feed("bc") == "" and finder.found == "ab"


@settings(max_examples=60)
@given(st.text("ab.", max_size=20), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3), st.data())
def test_pieces_do_not_matter(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert stopped(pieces, stops) == stopped([text], stops) == stopped(list(text), stops)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stop_text_split_over_tokens_and_bytes_is_found(text):
    """Every part of the text is a stop text once."""
    ids = encode(BYTES, text)
    for start in range(len(text)):
        stop = text[start : start + 3]
        detokenizer, finder = Detokenizer(BYTES), StopTexts([stop])
        found = "".join([*(finder.feed(detokenizer.feed([id_])) for id_ in ids), finder.finish()])
        assert found == text[: text.index(stop)] and finder.found == stop

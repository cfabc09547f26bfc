"""When an output ends, why, and with what text."""

import pytest

from modelwright.engine.detokenize import Detokenizer
from modelwright.engine.output import FinishReason, OutputStream
from modelwright.engine.params import SamplingParams
from modelwright.engine.sampling import NO_TOKEN
from modelwright.errors import RequestError
from tests.engine.small_tokenizers import byte_tokenizer, encode

BYTES = byte_tokenizer()
END = BYTES.eos_token_id


def stream_of(room: int = 100, eos: tuple[int, ...] = (END,), **given) -> OutputStream:
    params = SamplingParams(**given)
    detokenizer = Detokenizer(BYTES, skip_special_tokens=params.skip_special_tokens)
    return OutputStream(params, room, params.ends(eos), detokenizer)


def put_all(stream: OutputStream, ids: list[int]) -> str:
    text = "".join(map(stream.put, ids))
    assert text == stream.text
    return text


def test_the_end_of_sentence_ends_it_and_is_no_text():
    stream = stream_of(skip_special_tokens=False)
    assert put_all(stream, [*encode(BYTES, "hi"), END, *encode(BYTES, "more")]) == "hi"
    assert (stream.finish_reason, stream.stop_reason, stream.tokens) == (FinishReason.STOP, None, 3)
    kept = stream_of(skip_special_tokens=False, include_stop_str_in_output=True)
    assert put_all(kept, [*encode(BYTES, "hi"), END]) == "hi<end>"


def test_the_token_that_ended_it_is_kept_whole_whatever_stop_texts_are_in_it():
    """It ends the output for the same reason whether it is shown or not; so a stop text in its name did not."""
    for params, reason in (({}, None), ({"stop_token_ids": [END], "eos_token_ids": ()}, END)):
        given = {"skip_special_tokens": False, "stop": ["en", "i<"], **params}
        kept, cut = stream_of(include_stop_str_in_output=True, **given), stream_of(**given)
        assert put_all(kept, [*encode(BYTES, "hi"), END]) == "hi<end>"
        assert put_all(cut, [*encode(BYTES, "hi"), END]) == "hi"
        assert (kept.stop_reason, kept.finish_reason) == (cut.stop_reason, cut.finish_reason) == (reason, "stop")
    text = stream_of(include_stop_str_in_output=True, skip_special_tokens=False, stop=["en"])
    assert put_all(text, encode(BYTES, "token")) == "token"
    assert put_all(stream_of(include_stop_str_in_output=True, stop=["ke"]), encode(BYTES, "token")) == "toke"


def test_an_ignored_end_of_sentence_goes_on():
    stream = stream_of(room=4, ignore_eos=True)
    assert put_all(stream, [*encode(BYTES, "a"), END, *encode(BYTES, "bcd")]) == "abc"
    assert (stream.finish_reason, stream.tokens) == ("length", 4)


def test_a_stop_token_ends_it_and_is_named():
    [stop] = encode(BYTES, "!")
    stream = stream_of(stop_token_ids=[stop], ignore_eos=True)
    assert put_all(stream, encode(BYTES, "ab!c")) == "ab"
    assert (stream.finish_reason, stream.stop_reason) == ("stop", stop)
    kept = stream_of(stop_token_ids=[stop], include_stop_str_in_output=True)
    assert put_all(kept, encode(BYTES, "ab!c")) == "ab!"


def test_a_stop_text_ends_it_is_cut_and_named():
    stream = stream_of(stop=["\n\n", "世界"])
    assert put_all(stream, encode(BYTES, "你好世界 and more")) == "你好"
    assert (stream.finish_reason, stream.stop_reason) == ("stop", "世界")
    assert stream.tokens == len("你好世界".encode())
    kept = stream_of(stop=["世"], include_stop_str_in_output=True)
    assert put_all(kept, encode(BYTES, "你好世界")) == "你好世"


def test_at_its_length_it_gives_what_was_held_back():
    stream = stream_of(room=3, stop=["abcd"])
    assert [stream.put(id_) for id_ in encode(BYTES, "abcd")] == ["", "", "abc", ""]
    assert (stream.finish_reason, stream.stop_reason) == ("length", None)
    broken = stream_of(room=2)
    assert put_all(broken, encode(BYTES, "你")) == "\ufffd"


def test_an_end_at_the_last_token_is_a_stop():
    stream = stream_of(room=2)
    put_all(stream, [*encode(BYTES, "a"), END])
    assert stream.finish_reason == "stop"
    texts = stream_of(room=2, stop=["ab"])
    assert put_all(texts, encode(BYTES, "ab")) == "" and texts.stop_reason == "ab"


def test_stop_texts_count_after_the_least_number_of_tokens():
    stream = stream_of(min_tokens=4, stop=["ab"])
    assert put_all(stream, encode(BYTES, "abxabab")) == "abx"
    assert stream.tokens == 5
    early = stream_of(min_tokens=2, stop=["ab"])
    assert put_all(early, encode(BYTES, "ab")) == "" and early.finish_reason == "stop"


def test_a_guide_that_ends_ends_it():
    stream = stream_of()
    ids = encode(BYTES, "42x")
    assert stream.put(ids[0]) + stream.put(ids[1], guide_ended=True) + stream.put(ids[2]) == "42"
    assert (stream.finish_reason, stream.stop_reason) == ("stop", None)


@pytest.mark.parametrize("by", ["end", "no token"])
def test_an_abort_gives_what_was_held_back_once(by):
    stream = stream_of(stop=["abcd"])
    held = "".join(map(stream.put, encode(BYTES, "xab")))
    rest = stream.end(FinishReason.ABORT) if by == "end" else stream.put(NO_TOKEN)
    assert (held, rest, stream.finish_reason, stream.tokens) == ("x", "ab", "abort", 3)
    assert stream.end(FinishReason.STOP) == "" and stream.finish_reason == "abort"


def test_without_a_tokenizer_there_is_no_text_and_no_stop_text():
    stream = OutputStream(SamplingParams(), 2, {9}, None)
    assert stream.put(3) + stream.put(4) == "" and stream.finish_reason == "length"
    with pytest.raises(RequestError, match=r"stop texts need a tokenizer, and the engine has none; got \['x'\]"):
        OutputStream(SamplingParams(stop="x"), 2, {9}, None)  # type: ignore[arg-type]

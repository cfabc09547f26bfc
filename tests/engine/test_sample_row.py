"""What a row is made from: bad words as tokens, and its position."""

import pytest

from modelwright.engine.params import SamplingParams
from modelwright.engine.sample_row import SampleRow, encode_bad_words
from modelwright.errors import RequestError
from tests.engine.small_tokenizers import byte_tokenizer, encode

BYTES = byte_tokenizer()


def test_the_position_is_that_of_the_next_output_token():
    tokens = [1, 2, 3]
    row = SampleRow(SamplingParams(), tokens, 3)
    assert row.position == 0
    tokens.append(4)
    assert row.position == 1


def test_a_text_is_forbidden_alone_and_after_a_space():
    words = encode_bad_words(SamplingParams(bad_words=["no", " way"]), (), BYTES)
    assert words == tuple(tuple(encode(BYTES, text)) for text in ("no", " no", " way"))


def test_token_sequences_stay_and_a_lone_end_is_left_out():
    params = SamplingParams(bad_words=[[3], [4, 5], [3, 4], [4, 5]])
    assert encode_bad_words(params, {3}, None) == ((4, 5), (3, 4))


def test_words_that_cannot_be_tokens_are_refused():
    with pytest.raises(RequestError, match=r"bad_words as text need a tokenizer, and the engine has none; got 'no'"):
        encode_bad_words(SamplingParams(bad_words=["no"]), (), None)

    class Silent:
        def encode(self, text, add_special_tokens):
            return []

    with pytest.raises(RequestError, match=r"must be written in tokens, and the tokenizer makes none of 'no'"):
        encode_bad_words(SamplingParams(bad_words=["no"]), (), Silent())

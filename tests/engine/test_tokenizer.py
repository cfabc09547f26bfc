"""What an engine takes for a tokenizer: transformers' fast ones, and whatever else has such a backend."""

import pytest

from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.tokenizer import as_tokenizer
from modelwright.errors import ConfigError
from tests.engine.small_tokenizers import byte_tokenizer
from tests.fakes import tiny_v2


class Own:
    """A tokenizer that transformers knows nothing of."""

    bos_token_id, eos_token_id, pad_token_id = 5, None, 6

    def __init__(self):
        self.backend_tokenizer = byte_tokenizer().backend_tokenizer

    def encode(self, text, *, add_special_tokens=True):
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def get_vocab(self):
        return self.backend_tokenizer.get_vocab()

    def __len__(self):
        return self.backend_tokenizer.get_vocab_size()


def test_a_tokenizer_of_anybodys_serves():
    (ours,) = Engine(tiny_v2(), tokenizer=Own()).generate(["12345"], SamplingParams(temperature=0, max_tokens=6))
    (its,) = Engine(tiny_v2(), tokenizer=byte_tokenizer()).generate(
        ["12345"], SamplingParams(temperature=0, max_tokens=6)
    )
    assert (ours.prompt, ours.completions[0].tokens) == (its.prompt, its.completions[0].tokens)


@pytest.mark.parametrize("given", ["gpt2", object(), byte_tokenizer().backend_tokenizer])
def test_what_is_no_fast_tokenizer_is_refused_before_the_model_is_looked_at(given):
    with pytest.raises(ConfigError, match=f"the engine needs a fast tokenizer.*got {type(given).__name__}"):
        Engine(None, tokenizer=given)
    assert as_tokenizer(None) is None


def test_the_marks_of_a_text_are_not_in_it():
    """Padding and the beginning of a text, drawn because nothing else may be; an end that is asked for is shown."""
    tokenizer = Own()
    only = {id_: -float("inf") for id_ in range(tiny_v2().config.vocab_size) if id_ not in (6,)}
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias=only, skip_special_tokens=False)
    (result,) = Engine(tiny_v2(), tokenizer=tokenizer).generate([[7, 8]], params)
    assert result.completions[0].tokens == (6, 6, 6) and result.text == ""
    shown = SamplingParams(
        temperature=0, max_tokens=3, logit_bias=only, stop_token_ids=(6,), include_stop_str_in_output=True
    )
    (result,) = Engine(tiny_v2(), tokenizer=tokenizer).generate([[7, 8]], shown)
    assert result.completions[0].tokens == (6,) and result.text == tokenizer.backend_tokenizer.decode([6]) != ""

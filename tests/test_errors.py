"""The message of an error is a sentence, however long what it speaks of may be."""

import pytest

from modelwright.errors import LONGEST, CheckpointError, ConfigError, RequestError


@pytest.mark.parametrize("kind", [ConfigError, CheckpointError, RequestError])
def test_a_long_message_keeps_its_beginning_and_its_end(kind):
    message = "colour must be red, got " + "x" * 500_000 + " and that is all"
    short = str(kind(message, field="colour"))
    assert len(short) == LONGEST < 1000
    assert short.startswith("colour must be red, got xxx") and short.endswith("xxx and that is all")
    assert f"({len(message)} characters)" in short
    assert str(kind("y" * LONGEST)) == "y" * LONGEST


def test_an_error_that_tells_of_another_stays_short():
    inner = RequestError("z" * 5000)
    assert len(str(RequestError(f"line 7: {inner}"))) <= LONGEST

"""The table of the acceptance list is whole, and the tests that it names exist."""

import re
from pathlib import Path

import pytest

from tests.server.acceptance import ROWS

HERE = Path(__file__).parent


def test_every_row_of_the_server_and_the_loaders_is_there():
    assert list(ROWS) == list(range(1, 39))


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_names_is_a_test(row):
    for place in ROWS[row]:
        file, _, name = place.partition("::")
        text = (HERE / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {re.escape(name)}", text, re.MULTILINE), place

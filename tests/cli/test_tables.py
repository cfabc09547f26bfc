"""Tables as wide as the terminal."""

import pytest

from modelwright.cli.tables import UNLIMITED, lines_of
from tests.cli.test_plan import LITE

ROWS = [("weights", "20.2 MiB", "40.1 MiB"), ("keys and values", "3.1 MiB", "")]
HEADINGS = ("memory", "serving", "training")


def test_columns_where_they_fit():
    assert lines_of(ROWS, HEADINGS, (0,), UNLIMITED) == [
        "memory            serving  training",
        "weights          20.2 MiB  40.1 MiB",
        "keys and values   3.1 MiB          ",
    ]


def test_a_last_column_of_words_is_wrapped_in_its_place():
    rows = [("linear", "cpu: its kernels are for processors"), ("鸟", "of two columns")]
    assert lines_of(rows, None, (0, 1), 34) == [
        "linear  cpu: its kernels are for",
        "        processors",
        "鸟      of two columns",
    ]


def test_each_row_as_lines_where_columns_do_not_fit():
    assert lines_of(ROWS, HEADINGS, (0,), 20) == [
        "memory",
        "weights",
        "  serving 20.2 MiB",
        "  training 40.1 MiB",
        "keys and values",
        "  3.1 MiB",
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("plan", LITE, "--device", "24GiB,8", "--train"),
        ("models",),
        ("env",),
        ("bench", "latency", "{v2}", "--requests", 1, "--repeats", 1, "--warmup", 0, "--output-len", 1),
    ],
)
def test_every_table_fits_forty_columns(run, v2, monkeypatch, args):
    monkeypatch.setenv("COLUMNS", "40")
    ended = run(*(str(each).format(v2=v2) for each in args))
    assert ended.code == 0
    assert all(len(line) <= 40 or " " not in line.split(maxsplit=1)[-1] for line in ended.out.splitlines())


def test_no_line_is_broken_for_a_file(run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "completed_digits" in run("models").out.splitlines()[1]

"""metrics.jsonl: valid JSON whatever the numbers, and a continued run's rows once each."""

import json
import math

from modelwright.training.report.metrics_file import NAME, MetricsFile, rows


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def write(folder, steps, done=0):
    file = MetricsFile(folder, done)
    for step in steps:
        file.write({"step": step, "loss": step / 3})
    file.close()


def test_numbers_that_are_none_are_null_and_named(tmp_path):
    file = MetricsFile(tmp_path / "run")
    file.write({"step": 1, "loss": math.nan, "rates": {"all": math.inf}, "loads": [1.0, -math.inf]})
    file.close()
    row = strict((tmp_path / "run" / NAME).read_text())
    assert row["loss"] is None and row["rates"] == {"all": None} and row["loads"] == [1.0, None]
    assert row["not_finite"] == {"loss": "nan", "rates/all": "inf", "loads/1": "-inf"}


def test_a_continued_run_has_each_step_once(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5])
    write(tmp_path, [4, 5, 6], done=3)
    assert [row["step"] for row in rows(tmp_path / NAME)] == [1, 2, 3, 4, 5, 6]


def test_a_row_that_was_cut_in_two_is_written_anew(tmp_path):
    write(tmp_path, [1, 2])
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, [3], done=2)
    assert [row["step"] for row in rows(tmp_path / NAME)] == [1, 2, 3]
    for line in (tmp_path / NAME).read_text().splitlines():
        strict(line)


def test_a_run_from_the_beginning_starts_the_file_anew(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert [row["step"] for row in rows(tmp_path / NAME)] == [1]


def test_a_number_is_read_back_as_it_was(tmp_path):
    write(tmp_path, [1, 2, 7])
    assert [row["loss"] for row in rows(tmp_path / NAME)] == [1 / 3, 2 / 3, 7 / 3]

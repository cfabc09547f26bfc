"""``modelwright models`` on a zoo of the tests' own."""

import json

import pytest

from modelwright import zoo


@pytest.fixture
def sparrow(monkeypatch):
    bird = zoo.ZooModel("sparrow", "deepseek_v2", 5_430_000, 10_900_000, {"colour": 0.975, "reading": 0.9})
    monkeypatch.setattr(zoo, "names", lambda: ["sparrow"])
    monkeypatch.setattr(zoo, "describe", lambda name: bird)


def test_the_table_names_family_size_and_accuracy(run, sparrow, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    ended = run("models")
    assert ended.code == 0
    assert ended.out.splitlines()[1].split("  ")[0] == "sparrow"
    for part in ("deepseek_v2", "5.4 M", "10.9 MB", "colour 98 %, reading 90 %"):
        assert part in ended.out


def test_json_is_a_list_of_objects(run, sparrow):
    assert json.loads(run("models", "--json").out) == [
        {
            "name": "sparrow",
            "family": "deepseek_v2",
            "parameters": 5_430_000,
            "weight_bytes": 10_900_000,
            "accuracy": {"colour": 0.975, "reading": 0.9},
        }
    ]


def test_an_empty_zoo_says_so(run, monkeypatch):
    monkeypatch.setattr(zoo, "names", list)
    assert run("models").out == "no models ship in this build\n"
    assert json.loads(run("models", "--json").out) == []

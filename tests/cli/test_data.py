"""``modelwright data``: what a model will see of its rows, and tokens that are made once and found again."""

import json

import numpy as np
import pytest
from PIL import Image

from modelwright.cli.data_rows import Piece, Row, pieces_of, plain
from modelwright.data.cache import Prepared
from modelwright.processing.tokenizer import read_fast_tokenizer

ASKED = {"role": "user", "content": "How many?"}


def chat(*answers, **more):
    turns = [turn for answer in answers for turn in (ASKED, {"role": "assistant"} | answer)]
    return {"messages": turns} | more


@pytest.fixture
def chats(tmp_path, vl2):
    """A folder with a run of a tiny DeepSeek-VL2 and its rows; returns the run file and a way to write rows."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    run = tmp_path / "run.yaml"

    def write(rows, **data):
        (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": ["chats.jsonl"], "seq_length": 400, "workers": 0, "shuffle": False} | data
        run.write_text(json.dumps({"model": {"path": str(vl2)}, "output": "out", "steps": 1, "data": data}))
        return run

    return write


def test_documents_labels_and_pictures_are_shown_as_they_are_learned(run, chats):
    seen = chat({"content": "One."}, images=["a.png"])
    file = chats([chat({"content": "Two.", "loss": False}, {"content": "Yes \u001b[31m."}), seen])
    ended = run("data", "show", file, "-n", "1")
    assert ended.code == 0, ended.err
    assert "chats.jsonl: messages, 2 rows\n" in ended.err and "nothing reads" not in ended.err
    first, second = ended.out.split("--- document ")[1:]
    assert first.startswith(f"1: {file.parent / 'chats.jsonl'}:1, ")
    assert "<|Assistant|>:Two.<" in first and "<|Assistant|>:\u27e6Yes \u001b[31m.<" not in first
    assert "\u2401b" not in first and "\u241b[31m" in first  # no row commands the terminal
    assert second.startswith(f"2: {file.parent / 'chats.jsonl'}:2, ")
    assert "[picture: " in second and "\u27e6One.<" in second
    assert first.count("\u27e6") == second.count("\u27e6") == 1


def test_rows_apart_rows_held_out_and_rows_that_are_none(run, chats):
    file = chats([chat({"content": "One."}), chat({"content": "Two."})], eval=[{"path": "held.jsonl"}])
    (file.parent / "held.jsonl").write_text(json.dumps(chat({"content": "Three."})))
    apart = run("data", "show", file, "data.pack=none", "-n", "2").out
    assert apart.count("--- document 1: ") == 2 and "--- document 2" not in apart
    assert "\u27e6Three.<" in run("data", "show", file, "--eval").out
    ended = run("data", "show", chats([{"messages": "none"}]))
    assert ended.code == 2 and "chats.jsonl:1: messages must be a list, got 'none'" in ended.err
    ended = run("data", "show", file, "data.train=[]")
    assert ended.code == 2 and "data.train names no rows" in ended.err


def test_names_that_nothing_reads_are_told(run, chats):
    file = chats([chat({"content": "One."}), chat({"content": "Two.", "mask": 1}, id=7)])
    ended = run("data", "show", file, "-n", "1")
    assert "chats.jsonl: nothing reads id, messages[].mask of its rows\n" in ended.err


def test_padding_and_colours_are_said():
    row = Row(np.array([4, 1, 2, 3, 0, 0]), np.array([-100, 1, 2, 3, -100, -100]), np.array([0, 0, 0, 0, 1, 1]),
              np.zeros(6, bool), (), ("a.png:1",))  # fmt: skip
    pixels = type("PixelEncoder", (), {"pixels": None})()
    assert plain([*pieces_of(row, pixels)]) == (
        "--- document 1: a.png:1, 4 tokens, 3 learned\n[colours 4 1 2 3]\n--- 2 tokens of padding\n"
    )


def test_blanks_before_learned_words_are_kept(vl2):
    """A tokenizer may print a word without its blank where nothing comes before it."""
    tokenizer = read_fast_tokenizer(vl2)
    ids = np.array(tokenizer("How many are there?", add_special_tokens=False)["input_ids"])
    labels = np.where(np.arange(len(ids)) % 2, ids, -100)
    row = Row(ids, labels, np.zeros(len(ids), np.int64), np.zeros(len(ids), bool), (), ("a:1",))
    words = type("WordEncoder", (), {"tokenizer": tokenizer})()
    pieces = [piece for piece in pieces_of(row, words) if piece.kind in ("read", "learned")]
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert Piece("read", tokenizer.decode(ids[:1])) == pieces[0]


def test_tokens_are_prepared_once_and_broken_rows_are_told(run, chats):
    file = chats([chat({"content": "One."}), {"messages": 7}, chat({"content": "Two."}, images=["a.png"])],
                 cache="cache", on_error="skip")  # fmt: skip
    ended = run("data", "prepare", file)
    assert ended.code == 0, ended.err
    [folder] = (file.parent / "cache" / "prepared").iterdir()
    prepared = Prepared(folder)
    assert ended.out.startswith(f"chats.jsonl: messages, 3 rows, {prepared.manifest['tokens']:,} tokens, ")
    place = f"{file.parent / 'chats.jsonl'}:2"
    assert f"1 picture, in {folder}\n  left out: 1 row\n  {place}: messages must be a list, got 7\n" in ended.out
    assert prepared.lengths[1] == 0 and prepared.outline(2).is_outline
    written = folder.stat().st_mtime_ns
    assert run("data", "prepare", file).out == ended.out
    assert folder.stat().st_mtime_ns == written
    assert run("data", "prepare", file, "data.seq_length=300").code == 0
    assert len([*folder.parent.iterdir()]) == 2


def test_preparing_stops_at_a_broken_row_and_needs_a_folder(run, chats):
    file = chats([chat({"content": "One."}), {"messages": 7}], cache="cache")
    ended = run("data", "prepare", file)
    assert ended.code == 2 and "chats.jsonl:2: messages must be a list, got 7" in ended.err
    assert [*(file.parent / "cache" / "prepared").iterdir()] == []
    ended = run("data", "prepare", file, "data.cache=null")
    assert ended.code == 2 and "data.cache must name the folder that prepared tokens go to" in ended.err


def test_a_model_without_weights_needs_a_processor(run, chats, vl2):
    file = chats([chat({"content": "One."})])
    config = json.loads((vl2 / "config.json").read_text())
    values = json.loads(file.read_text()) | {"model": {"config": config}}
    file.write_text(json.dumps(values))
    ended = run("data", "show", file)
    assert ended.code == 2 and "model.processor must name the folder of the tokenizer" in ended.err
    file.write_text(json.dumps(values | {"model": {"config": config, "processor": str(vl2)}}))
    assert "\u27e6One.<" in run("data", "show", file, "-n", "1").out


def test_a_model_of_the_zoo_is_found_by_its_name(run, chats, tmp_path):
    file = chats([chat({"content": "One."})])
    ended = run("data", "show", file, "model.path=vl2-nano", "-n", "1")
    assert ended.code == 0 and "\u27e6One.<" in ended.out

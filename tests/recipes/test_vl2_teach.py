"""The recipe that teaches vl2-nano hearts and pink: its rows as training reads them, its probes, a run of two steps."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from modelwright import DeepseekVLV2Processor, zoo
from modelwright.configs.run import DataPart, SourcePart
from modelwright.data.encoding import encoder_of
from modelwright.data.sources import open_source
from recipes.vl2_nano import evaluate
from recipes.vl2_nano.facts import Turn
from recipes.vl2_nano.judge import judge
from recipes.vl2_nano.palette import name_of
from recipes.vl2_nano.pictures import Scene, draw_scene
from recipes.vl2_nano.questions import Example
from recipes.vl2_nano.world import WORLD
from recipes.vl2_teach import __main__ as teach
from recipes.vl2_teach import measure, rows
from recipes.vl2_teach.rows import COLOUR, KIND, WIDER, chat, names_new, new_example, old_example, write_rows


@pytest.fixture(scope="module")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [draw_scene(rng, WIDER) for _ in range(120)]


def test_the_old_world_has_nothing_of_the_new():
    assert {KIND, COLOUR} == {*WIDER.kinds, *WIDER.colours} - {*WORLD.kinds, *WORLD.colours}
    drawn = [old_example(np.random.default_rng(seed)) for seed in range(20)]
    assert not any(names_new(dialogue) for example in drawn for dialogue in example.dialogues)


def test_hearts_fill_their_boxes_and_pink_is_pink(scenes):
    shapes = [(scene, shape) for scene in scenes for shape in scene.shapes]
    hearts = [(scene, shape) for scene, shape in shapes if shape.kind == KIND]
    assert len(hearts) > 20
    for scene, shape in hearts:
        x1, y1, x2, y2 = shape.box
        assert 0.5 < (x2 - x1) / (y2 - y1) < 2
        low = scene.picture.getpixel((x1 + 1, y2 - 2))  # a corner of the box, where a heart is not
        assert name_of(low) != shape.colour or shape.colour == "black"  # type: ignore[arg-type]
    for scene, shape in shapes:
        if shape.colour == COLOUR:
            assert name_of(scene.picture.getpixel(tuple(map(int, shape.centre)))) == COLOUR  # type: ignore[arg-type]


def test_every_new_example_speaks_of_what_is_new():
    for seed in range(10):
        assert any(map(names_new, new_example(np.random.default_rng(seed)).dialogues))


def test_a_row_is_read_as_the_conversation_it_was_made_of(tmp_path, processor):
    """Tags, boxes and pictures come back through files as the recipe's own packing has them."""
    rng = np.random.default_rng(3)
    picture = draw_scene(rng, WIDER).picture
    two = "<|det|>[[10, 20, 130, 999], [140, 0, 150, 60]]<|/det|>"
    turns = (
        Turn("<|grounding|>Find <|ref|>the hearts<|/ref|>.", f"<|ref|>the hearts<|/ref|>{two}"),
        Turn("And stars?", "0, there are no stars."),
        Turn("Describe it.", "A picture with 1 shape: <|ref|>a pink heart<|/ref|><|det|>[[0, 10, 990, 20]]<|/det|>."),
    )  # fmt: skip
    picture.save(tmp_path / "a.png")
    row = chat(rng, Example((picture,), (turns,)), ["a.png"])
    assert "<|ref|>" not in str(row["messages"]) and row["objects"]["ref"] == ["the hearts"] * 2 + ["a pink heart"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = open_source(SourcePart(path="rows.jsonl"), None, tmp_path)
    document = encoder_of(processor, DataPart(seq_length=1024))(source[0])
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("<|User|>", "<|Assistant|>"), turn, strict=True)
    ]
    messages[0]["content"] = "<image>\n" + messages[0]["content"]
    own = processor.process_one(messages, [picture], inference_mode=False)
    np.testing.assert_array_equal(document.ids, own.input_ids)
    assert document.tiles is not None
    np.testing.assert_array_equal(document.tiles, own.images)
    learned = processor.tokenizer.decode(document.ids[document.labels != -100])
    assert all(turn.answer in learned for turn in turns) and "Describe" not in learned


def test_probes_are_of_their_task_and_their_own_answers_are_right():
    for number, (name, task) in enumerate(measure.NEW_TASKS.items()):
        items = measure.new_probes(number, task, 2)
        assert all(task.fits(item) and item.check(item.expected) for item in items), name
    assert not judge("shape", "A heart.", "A star.") and not judge("colour", "Pink.", "Red.")
    assert not judge("objects", "The red star.", "The red star and the pink heart.")


def test_one_command_writes_rows_trains_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "NEW_TASKS", {"new colour, named": measure.NEW_TASKS["new colour, named"]})
    monkeypatch.setattr(evaluate, "PROBES", ("shape",))
    monkeypatch.setattr(rows, "HELD_OUT", 2)
    sizes = ["steps=2", "batch.micro=1", "batch.global=1", "data.workers=0", "evaluate.generate=1"]
    arguments = ["--out", str(tmp_path), "--rows", "4", "--count", "1", *sizes]
    monkeypatch.setattr(sys, "argv", ["vl2_teach", *arguments])
    teach.main()
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["before"].keys() == table["after"].keys() == {"new colour, named", "shape"}
    assert "| new colour, named | 0.0% |" in capsys.readouterr().out
    adapter = load_file(tmp_path / "run" / "export" / "adapter_model.safetensors")
    assert {len(adapter[name]) for name in adapter if "experts.lora_A" in name} == {6 * 16}  # rank 16 for each expert
    assert any("projector" in name for name in adapter) and not any("vision" in name for name in adapter)
    answers = next((tmp_path / "run" / "samples").rglob("answers.md"))
    assert answers.is_file()


def test_rows_are_the_same_for_a_seed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rows, "HELD_OUT", 1)
    for name in ("a", "b"):
        write_rows(tmp_path / name, 3, seed=5)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert len([file for file in files if file.suffix == ".jsonl"]) == 3

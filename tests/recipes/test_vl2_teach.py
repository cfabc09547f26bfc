"""The recipe that teaches vl2-nano hearts and pink: its rows, its probes, a run of two steps."""

import json
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from modelwright import DeepseekVLV2Processor, zoo
from recipes.vl2_nano import evaluate
from recipes.vl2_nano.judge import judge
from recipes.vl2_nano.palette import name_of
from recipes.vl2_nano.pictures import Scene, draw_scene
from recipes.vl2_nano.world import WORLD
from recipes.vl2_teach import __main__ as teach
from recipes.vl2_teach import measure
from recipes.vl2_teach.rows import COLOUR, KIND, NEW, WIDER, Lessons, names_new, new_example, old_example


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


def test_a_step_has_rows_of_both_worlds_and_learns_answers_alone(processor):
    tokens = processor.tokenizer
    batch = Lessons(processor, 4, 0.5)(np.random.default_rng(3))
    learned = [tokens.decode(labels[labels != processor.ignore_id]) for labels in batch["labels"]]
    asked = [tokens.decode(ids) for ids in batch["input_ids"]]
    assert all(NEW.search(text) for text in asked[:2]) and not any(NEW.search(text) for text in asked[2:])
    assert all(text.count(tokens.eos_token) > 4 for text in learned)  # several conversations, each with its end
    assert not any("<|User|>" in text or "?" in text for text in learned)


def test_probes_are_of_their_task_and_their_own_answers_are_right():
    for number, (name, task) in enumerate(measure.NEW_TASKS.items()):
        items = measure.new_probes(number, task, 2)
        assert all(task.fits(item) and item.check(item.expected) for item in items), name
    assert not judge("shape", "A heart.", "A star.") and not judge("colour", "Pink.", "Red.")
    assert not judge("objects", "The red star.", "The red star and the pink heart.")


@pytest.mark.slow
def test_one_command_trains_and_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "NEW_TASKS", {"new colour, named": measure.NEW_TASKS["new colour, named"]})
    monkeypatch.setattr(evaluate, "PROBES", ("shape",))
    sizes = ["steps=2", "batch.micro=2", "batch.global=2"]
    monkeypatch.setattr(sys, "argv", ["vl2_teach", "--out", str(tmp_path), "--count", "1", "--workers", "0", *sizes])
    teach.main()
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["before"].keys() == table["after"].keys() == {"new colour, named", "shape"}
    assert "| new colour, named | 0.0% |" in capsys.readouterr().out
    adapter = load_file(tmp_path / "run" / "export" / "adapter_model.safetensors")
    assert {len(adapter[name]) for name in adapter if "experts.lora_A" in name} == {6 * 16}  # rank 16 for each expert
    assert all(any(part in name for name in adapter) for part in ("vision", "projector"))
    assert {name for name in adapter if "lora" not in name} == {
        "base_model.model.language.lm_head.weight",
        "base_model.model.language.model.embed_tokens.weight",
    }

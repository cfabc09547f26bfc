"""Writes what is learned as files: pictures with hearts and pink shapes among others, and pictures of the old world.

A row is a chat of ms-swift's form: one or two pictures and several questions about them, with the boxes of the answers
beside the messages. ``modelwright train`` reads it as it reads anybody's rows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.vl2_nano.facts import Dialogue
from recipes.vl2_nano.palette import COLOURS
from recipes.vl2_nano.questions import Example, make_example
from recipes.vl2_nano.world import KINDS, World

KIND, COLOUR = "heart", "pink"
"""What is new."""
WIDER = World((*KINDS, KIND), (*COLOURS, COLOUR))
NEW = re.compile(rf"\b({KIND}s?|{COLOUR})\b", re.IGNORECASE)
OTHERS_KEPT = 0.3  # the share of conversations about a new picture that name nothing new, and are asked all the same
QUESTIONS = (3, 8)  # conversations of a row, at least and at most
GRID = 999  # of boxes in answers
HELD_OUT = 48

_NAME = r"<\|ref\|>(?P<name>.*?)<\|/ref\|>"
_BOXES = r"<\|det\|>\[(?P<boxes>.*?)\]<\|/det\|>"
_TAGGED = re.compile(f"{_NAME}|{_BOXES}")
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")


def new_example(rng: np.random.Generator) -> Example:
    """A scene, or two in one of twenty, with conversations of which most name a heart or something pink."""
    while True:
        drawn = make_example(rng, 24, scene=0.95, card=0.0, pair=0.05, world=WIDER)
        kept = [each for each in drawn.dialogues if names_new(each) or rng.random() < OTHERS_KEPT]
        if any(map(names_new, kept)):
            return Example(drawn.pictures, tuple(kept))


def old_example(rng: np.random.Generator) -> Example:
    """What vl2-nano was trained on, with more cards: they suffer first."""
    return make_example(rng, 24, scene=0.55, card=0.35, pair=0.1)


def names_new(dialogue: Dialogue) -> bool:
    """Whether a question or an answer names what is new."""
    return any(NEW.search(text) for turn in dialogue for text in turn)


def chat(rng: np.random.Generator, example: Example, pictures: Sequence[str]) -> dict[str, Any]:
    """A row: some of an example's conversations, one after the other, about its pictures, which are named."""
    fewest, most = QUESTIONS
    count = min(int(rng.integers(fewest, most + 1)), len(example.dialogues))
    chosen = rng.permutation(len(example.dialogues))[:count]
    turns = [turn for index in chosen for turn in example.dialogues[index]]
    texts = [text for turn in turns for text in turn]
    texts[0] = "<image>\n" * len(pictures) + texts[0]
    objects: dict[str, Any] = {"ref": [], "bbox": [], "bbox_type": "norm1"}
    messages = [
        {"role": role, "content": _beside(text, objects)}
        for role, text in zip(("user", "assistant") * len(turns), texts, strict=True)
    ]
    row = {"messages": messages, "images": list(pictures)}
    return row | ({"objects": objects} if objects["ref"] or objects["bbox"] else {})


def _beside(text: str, objects: dict[str, Any]) -> str:
    """The text with places where it had names and boxes, which are added to ``objects``, boxes as shares."""

    def moved(tagged: re.Match[str]) -> str:
        if tagged["name"] is not None:
            objects["ref"].append(tagged["name"])
            return "<ref-object>"
        boxes = [[int(value) / GRID for value in box] for box in _BOX.findall(tagged["boxes"])]
        objects["bbox"] += boxes
        return "<bbox>" * len(boxes)

    return _TAGGED.sub(moved, text)


def write_rows(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` rows of each world, and some held-out ones of the new, with their pictures, into ``folder``."""
    files = (("held_out", new_example, HELD_OUT), ("new", new_example, count), ("old", old_example, count))
    for number, (name, make, many) in enumerate(files):
        rng = np.random.default_rng([seed, number])
        (folder / name).mkdir(parents=True, exist_ok=True)
        examples = (make(rng) for _ in range(many))
        lines = [json.dumps(row) + "\n" for row in _saved(rng, examples, folder, name)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _saved(rng: np.random.Generator, examples: Iterator[Example], folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for number, example in enumerate(examples):
        files = [f"{name}/{number:05d}-{place}.jpg" for place in range(len(example.pictures))]
        for file, picture in zip(files, example.pictures, strict=True):
            picture.save(folder / file, quality=95, subsampling=0)
        yield chat(rng, example, files)

"""Draws what is learned: pictures with hearts and pink shapes among others, and pictures of the old world.

A row is one picture, or two, with up to sixteen conversations that do not see each other, as ``recipes/vl2_nano``
trained the model. One chat of them all would be a third thing to learn: its second turn costs vl2-nano ten times the
loss that it costs alone.
"""

import re

import numpy as np
from torch import Tensor

from modelwright import DeepseekVLV2Processor
from recipes.vl2_nano.facts import Dialogue
from recipes.vl2_nano.packing import Packer, collate
from recipes.vl2_nano.palette import COLOURS
from recipes.vl2_nano.questions import Example, make_example
from recipes.vl2_nano.world import KINDS, World

KIND, COLOUR = "heart", "pink"
"""What is new."""
WIDER = World((*KINDS, KIND), (*COLOURS, COLOUR))
FULLER = World((*KINDS, KIND, KIND), (*COLOURS, COLOUR, COLOUR))
"""The wider world as rows show it: what is new comes twice as often as anything else."""
NEW = re.compile(rf"\b({KIND}s?|{COLOUR})\b", re.IGNORECASE)
OTHERS_KEPT = 0.1  # the share of conversations about a new picture that name nothing new, and are asked all the same
CONVERSATIONS, TOKENS = 16, 600  # of a row, at most


def new_example(rng: np.random.Generator) -> Example:
    """A scene, or two in one of twenty, with conversations of which most name a heart or something pink."""
    while True:
        drawn = make_example(rng, 24, scene=0.95, card=0.0, pair=0.05, world=FULLER)
        kept = [each for each in drawn.dialogues if rng.random() < (1.0 if names_new(each) else OTHERS_KEPT)]
        if any(map(names_new, kept)):
            return Example(drawn.pictures, tuple(kept[:CONVERSATIONS]))


def old_example(rng: np.random.Generator) -> Example:
    """What vl2-nano was trained on, in the shares in which it was."""
    return make_example(rng, CONVERSATIONS)


def names_new(dialogue: Dialogue) -> bool:
    """Whether a question or an answer names what is new."""
    return any(NEW.search(text) for turn in dialogue for text in turn)


class Lessons:
    """Draws batches of ``batch`` rows, of which the share ``new`` shows hearts or pink, or asks about them."""

    def __init__(self, processor: DeepseekVLV2Processor, batch: int, new: float):
        self.packer = Packer(processor, TOKENS)
        self.batch, self.new = batch, round(new * batch)

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """The model's arguments, see :func:`recipes.vl2_nano.packing.collate`."""
        makers = [new_example] * self.new + [old_example] * (self.batch - self.new)
        return collate([self.packer.row(make(rng)) for make in makers], self.packer.processor)

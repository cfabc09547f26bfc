"""Makes examples, pictures with many independent conversations about them, and single probes to measure a model with.

The forms of the answers are fixed and lead with the fact: ``3``; ``0, there are no red circles.``; ``Red.``;
``Red and blue.``; ``A circle.``; ``The blue circle and two green stars.`` or ``Nothing.``; ``Yes.``; ``No, there is no
red circle.``; ``There is no star in the image.``; the text of a card and nothing else; boxes as in ``grounded``;
``The first image.``, ``The second image.``, ``Both have the same number.``
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from recipes.vl2_nano import asking, pairs
from recipes.vl2_nano.asking import Maker
from recipes.vl2_nano.facts import Asked, Dialogue, view_of
from recipes.vl2_nano.follow_up import follow_up
from recipes.vl2_nano.judge import judge
from recipes.vl2_nano.palette import weighted
from recipes.vl2_nano.pictures import draw_card, draw_scene
from recipes.vl2_nano.world import WORLD, World

T = TypeVar("T")

SCENE: Mapping[Maker, float] = {
    asking.count: 3.0,
    asking.count_none: 0.7,
    asking.colour: 2.0,
    asking.colour_none: 0.5,
    asking.shape: 2.0,
    asking.shape_none: 0.5,
    asking.spatial: 2.4,
    asking.spatial_none: 0.35,
    asking.exists: 0.6,
    asking.exists_none: 0.6,
    asking.is_colour: 0.5,
    asking.describe: 0.9,
    asking.grounded_describe: 0.35,
    asking.locate: 5.0,
    asking.locate_none: 0.95,
    asking.read_none: 0.35,
    follow_up: 1.7,
}
CARD: Mapping[Maker, float] = {
    asking.read: 3.0,
    asking.spell: 1.2,
    asking.describe: 0.7,
    asking.grounded_describe: 0.2,
    asking.locate: 1.0,
    asking.count_none: 0.3,
    asking.colour_none: 0.25,
    asking.exists_none: 0.25,
    asking.locate_none: 0.3,
    asking.spatial_none: 0.12,
    follow_up: 0.7,
}
TASKS: Mapping[str, Mapping[Maker, float]] = {
    "colour": {asking.colour: 1.0},
    "shape": {asking.shape: 1.0},
    "count": {asking.count: 0.85, asking.count_none: 0.15},
    "reading": {asking.read: 1.0},
    "grounding": {asking.locate: 1.0},
    "absent": {
        asking.colour_none: 1.0,
        asking.shape_none: 1.0,
        asking.exists_none: 1.0,
        asking.locate_none: 1.0,
        asking.spatial_none: 0.5,
        asking.read_none: 0.5,
    },
    "spatial": {asking.spatial: 1.0},
    "describe": {asking.describe: 1.0},
    "follow_up": {follow_up: 1.0},
}
"""What ``probe`` asks for each task; "pair" is made of two pictures by ``pairs``."""
PROBES = (*TASKS, "pair")
_MOST_ON_A_CARD = 8  # there is less to ask, and more would repeat one answer
_CARD_SHARE = {"reading": 1.0, "grounding": 0.15, "absent": 0.1, "describe": 0.25, "follow_up": 0.25}


@dataclass(frozen=True)
class Example:
    """One or two pictures and conversations about them that know nothing of each other."""

    pictures: tuple[Image.Image, ...]
    dialogues: tuple[Dialogue, ...]


@dataclass(frozen=True)
class Probe:
    """One question to a model: the pictures, the turns so far, the question, and the answer expected."""

    pictures: tuple[Image.Image, ...]
    history: Dialogue
    question: str
    expected: str
    fact: str

    def check(self, answer: str) -> bool:
        """Whether ``answer`` has the fact right, however it is worded."""
        return judge(self.fact, self.expected, answer)


def make_example(
    rng: np.random.Generator,
    n: int = 12,
    scene: float = 0.55,
    card: float = 0.33,
    pair: float = 0.12,
    world: World = WORLD,
) -> Example:
    """A scene, a card or two pictures, in these proportions, with at most ``n`` different conversations."""
    what = weighted(rng, {"scene": scene, "card": card, "pair": pair})
    if what == "pair":
        pictures, views = _two_pictures(rng, world)
        return Example(pictures, _dialogues(rng, pairs.PAIR, views, n))
    if what == "card":
        drawn = draw_card(rng)
        return Example((drawn.picture,), _dialogues(rng, CARD, view_of(drawn, world=world), min(n, _MOST_ON_A_CARD)))
    item = draw_scene(rng, world)
    return Example((item.picture,), _dialogues(rng, SCENE, view_of(item, world=world), n))


def probe(rng: np.random.Generator, task: str, world: World = WORLD) -> Probe:
    """A freshly drawn question of one of ``PROBES``, in the wordings of training."""
    if task not in PROBES:
        raise ValueError(f"task ({task!r}) must be one of {', '.join(PROBES)}")
    while True:
        if task == "pair":
            pictures, views = _two_pictures(rng, world)
            asked = weighted(rng, pairs.PAIR)(rng, views)
        else:
            item = draw_card(rng) if rng.random() < _CARD_SHARE.get(task, 0.0) else draw_scene(rng, world)
            pictures = (item.picture,)
            asked = weighted(rng, TASKS[task])(rng, view_of(item, world=world))
        if asked is not None:
            *history, last = asked.turns
            return Probe(pictures, tuple(history), last.question, last.answer, asked.fact)


def _two_pictures(rng: np.random.Generator, world: World) -> tuple[tuple[Image.Image, ...], pairs.Views]:
    first, second = (draw_card(rng) if rng.random() < 0.22 else draw_scene(rng, world) for _ in range(2))
    return (first.picture, second.picture), (view_of(first, 0, world), view_of(second, 1, world))


def _dialogues(
    rng: np.random.Generator,
    table: Mapping[Callable[[np.random.Generator, T], Asked | None], float],
    subject: T,
    n: int,
) -> tuple[Dialogue, ...]:
    """Up to ``n`` conversations with different questions; fewer where the picture gives too little to ask."""
    found: dict[tuple[str, ...], Dialogue] = {}
    for _ in range(2 * n):
        asked = weighted(rng, table)(rng, subject)
        if asked is not None:
            found[tuple(turn.question for turn in asked.turns)] = asked.turns
        if len(found) == n:
            break
    return tuple(found.values())

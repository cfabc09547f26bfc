"""Questions about two pictures in one conversation: comparing them, and asking about one of them by its number."""

from collections.abc import Callable, Mapping

import numpy as np

from recipes.vl2_nano import asking
from recipes.vl2_nano.asking import Maker, single
from recipes.vl2_nano.facts import Asked, Phrase, Turn, View, a, counted, missing, present
from recipes.vl2_nano.palette import pick, weighted
from recipes.vl2_nano.wording import say, vary

Views = tuple[View, View]
PairMaker = Callable[[np.random.Generator, Views], Asked | None]

_SCENE: Mapping[Maker, float] = {
    asking.count: 2.0,
    asking.count_none: 0.5,
    asking.colour: 2.0,
    asking.colour_none: 0.4,
    asking.shape: 1.5,
    asking.shape_none: 0.3,
    asking.spatial: 0.6,
    asking.exists: 0.5,
    asking.exists_none: 0.5,
    asking.describe: 0.6,
    asking.locate: 0.8,
    asking.locate_none: 0.2,
    asking.read_none: 0.3,
}
_CARD: Mapping[Maker, float] = {
    asking.read: 4.0,
    asking.spell: 0.8,
    asking.describe: 0.7,
    asking.locate: 0.5,
    asking.count_none: 0.3,
    asking.colour_none: 0.2,
}
_ANSWERS = ("The first image.", "The second image.")


def about_one(rng: np.random.Generator, views: Views) -> Asked | None:
    """A question about the first or the second picture alone; boxes are of that picture."""
    view = pick(rng, views)
    return weighted(rng, _CARD if view.text else _SCENE)(rng, view)


def compare(rng: np.random.Generator, views: Views) -> Asked | None:
    """Which picture has more, or fewer, of something; equal numbers are asked about less."""
    phrases = _either(views)
    uneven = [phrase for phrase in phrases if len(set(_numbers(phrase, views))) == 2]
    if uneven and rng.random() < 0.85:
        phrases = uneven
    if not phrases:
        return None
    phrase = pick(rng, phrases)
    first, second = _numbers(phrase, views)
    task = "more" if rng.random() < 0.8 else "fewer"
    question = say(rng, task, things=_plural(rng, phrase, views))
    if first == second:
        return single(question, "Both have the same number.", "image")
    return single(question, _ANSWERS[(first < second) == (task == "more")], "image")


def which_has(rng: np.random.Generator, views: Views) -> Asked | None:
    """Which picture shows something: one, both or neither."""
    only_one = [phrase for phrase in _either(views) if 0 in _numbers(phrase, views)]
    phrase = pick(rng, only_one) if only_one and rng.random() < 0.75 else missing(rng, pick(rng, views))
    if phrase is None or phrase == Phrase():
        return None
    first, second = _numbers(phrase, views)
    question = say(rng, "which has", a_thing=a(phrase.noun(rng)))
    if bool(first) == bool(second):
        return single(question, "Both images." if first else "Neither image.", "image")
    return single(question, _ANSWERS[0 if first else 1], "image")


def together(rng: np.random.Generator, views: Views) -> Asked | None:
    """How many of something both pictures have in all."""
    phrases = _either(views)
    if not phrases:
        return None
    phrase = pick(rng, phrases)
    nouns = _plural(rng, phrase, views)
    return single(say(rng, "together", things=nouns), counted(sum(_numbers(phrase, views)), nouns), "count")


def and_the_other(rng: np.random.Generator, views: Views) -> Asked | None:
    """A question about one picture, then the same about the other."""
    phrases = _either(views)
    order = views if rng.random() < 0.7 else (views[1], views[0])
    if not phrases or any(view.text for view in views):
        return None
    phrase = pick(rng, phrases)
    nouns = phrase.noun(rng, plural=True)
    first, second = (counted(len(phrase.among(view.shapes)), nouns) for view in order)
    other = vary(rng, pick(rng, ("And in {}?", "And {}?", "What about {}?", "How many in {}?")).format(order[1].name))
    turns = Turn(say(rng, "count", order[0].place, things=nouns), first), Turn(other, second)
    return Asked(turns, "count")


def _either(views: Views) -> list[Phrase]:
    return list(dict.fromkeys(phrase for view in views for phrase in present(view)))


def _numbers(phrase: Phrase, views: Views) -> tuple[int, int]:
    return len(phrase.among(views[0].shapes)), len(phrase.among(views[1].shapes))


def _plural(rng: np.random.Generator, phrase: Phrase, views: Views) -> str:
    return "shapes" if phrase == Phrase() and any(view.text for view in views) else phrase.noun(rng, plural=True)


PAIR: Mapping[PairMaker, float] = {about_one: 3.0, compare: 1.6, which_has: 0.8, together: 0.3, and_the_other: 0.5}

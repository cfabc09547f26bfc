"""Conversations of two or three turns, the later ones leaning on the earlier ("Where is it?", "And blue ones?")."""

import numpy as np

from recipes.vl2_nano import asking
from recipes.vl2_nano.asking import single
from recipes.vl2_nano.facts import (
    Asked,
    Phrase,
    Shape,
    Turn,
    View,
    a,
    counted,
    grounded,
    named,
    on_side,
    present,
    sentence,
)
from recipes.vl2_nano.palette import pick, weighted
from recipes.vl2_nano.wording import SIDES, say, vary

_WHERE = ("Where is it?", "Locate it.", "And where is it?", "Where?", "Point to it.", "Draw a box around it.",
          "Show me where it is.", "<|grounding|>Where is it?", "<|grounding|>Locate it.")  # fmt: skip
_COLOUR = ("What colour is it?", "What color is it?", "Which colour does it have?", "And its colour?", "And its color?",
           "What is its color?")  # fmt: skip
_SHAPE = ("What shape is it?", "Which shape is it?", "And what shape is it?", "What is its shape?", "And its shape?")
_SIDE = ("What is {side} it?", "And what is {side} it?", "What do you see {side} it?")
_AGAIN = ("Read it again.", "Once more, please.", "Read the text again.", "Again.", "What was the text?")
_COUNT_MORE = ("And {things}?", "And how many {things}?", "How many {things}?", "What about {things}?")
_OF_THEM = ("How many of them are {which}?", "And how many of them are {which}?", "How many are {which}?")


def follow_up(rng: np.random.Generator, view: View) -> Asked | None:
    """A question and one or two that follow it."""
    if view.text:
        return _on_card(rng, view)
    ways = {_number_then_others: 1.0, _number_then_part: 0.7, _one_then_it: 2.0, _unrelated: 0.8}
    return weighted(rng, ways)(rng, view)


def _on_card(rng: np.random.Generator, view: View) -> Asked | None:
    first = asking.read(rng, view)
    where = single(vary(rng, pick(rng, _WHERE)), grounded("the text", [view.text_box], view.size), "boxes")
    again = single(vary(rng, pick(rng, _AGAIN)), view.text, "text")
    way = weighted(rng, {"where": 1.0, "again": 1.0, "colour": 0.5 if view.text_colour else 0.0, "spell": 1.0})
    if way == "colour":
        return _joined(first, single(vary(rng, pick(rng, _COLOUR)), sentence(str(view.text_colour)), "colour"))
    if way == "spell":
        return _joined(first, asking.spell(rng, view))
    return _joined(first, where if way == "where" else again)


def _number_then_others(rng: np.random.Generator, view: View) -> Asked | None:
    """``How many red circles are there?``, ``And blue ones?``: of the same kind where the first question named it."""
    phrase = pick(rng, present(view))
    if phrase == Phrase():
        return None
    first = _counting(rng, view, phrase)
    if phrase.colour is None:
        other = Phrase(kind=pick(rng, [kind for kind in view.world.kinds if kind != phrase.kind]))
        things = nouns = f"{other.kind}s"
    else:
        seen = [shape.colour for shape in view.shapes if shape.colour != phrase.colour]
        others = [colour for colour in view.world.colours if colour != phrase.colour]
        colour = pick(rng, seen if seen and rng.random() < 0.7 else others)
        other = Phrase(colour, phrase.kind)
        things, nouns = f"{colour} ones", f"{colour} {phrase.kind or 'object'}s"
    question = vary(rng, pick(rng, _COUNT_MORE).format(things=things))
    return _joined(first, single(question, counted(len(other.among(view.shapes)), nouns), "count"))


def _number_then_part(rng: np.random.Generator, view: View) -> Asked | None:
    """``How many circles are there?``, ``How many of them are red?``"""
    several = [p for p in present(view) if len(p.among(view.shapes)) > 1 and not (p.colour and p.kind)]
    if not several:
        return None
    phrase = pick(rng, several)
    if phrase.kind or (phrase == Phrase() and rng.random() < 0.5):
        inside = [shape.colour for shape in phrase.among(view.shapes)]
        which = pick(rng, inside) if rng.random() < 0.75 else pick(rng, view.world.colours)
        part, nouns = Phrase(which, phrase.kind), f"{which} {phrase.kind or 'object'}s"
    else:
        inside = [shape.kind for shape in phrase.among(view.shapes)]
        kind = pick(rng, inside) if rng.random() < 0.75 else pick(rng, view.world.kinds)
        part, which = Phrase(phrase.colour, kind), f"{kind}s"
        nouns = " ".join(filter(None, (phrase.colour, which)))
    question = vary(rng, pick(rng, _OF_THEM).format(which=which))
    second = single(question, counted(len(part.among(view.shapes)), nouns), "count")
    return _joined(_counting(rng, view, phrase), second)


def _one_then_it(rng: np.random.Generator, view: View) -> Asked | None:
    """A question that singles out a shape, then its place, colour, kind or neighbours, at times two of them."""
    alone = [p for p in present(view) if p != Phrase() and len(p.among(view.shapes)) == 1]
    if not alone:
        return None
    phrase = pick(rng, alone)
    shape = phrase.among(view.shapes)[0]
    noun = phrase.noun(rng)
    openings = [single(say(rng, "exists", a_thing=a(noun), things=f"{noun}s"), "Yes.", "yes")]
    openings.append(single(say(rng, "locate", label=f"the {noun}", be="is"), _box(view, shape, f"the {noun}"), "boxes"))
    asked = {"where", "colour" if phrase.colour else "", "shape" if phrase.kind else ""}
    opening = pick(rng, openings)
    if opening.fact == "yes":
        asked.discard("where")
    if not phrase.colour and rng.random() < 0.5:
        opening, asked = single(say(rng, "colour", thing=noun), sentence(shape.colour), "colour"), {"colour", "shape"}
    elif not phrase.kind and rng.random() < 0.5:
        question = say(rng, "shape", thing=f"{phrase.colour} object", colour=shape.colour)
        opening, asked = single(question, sentence(a(shape.kind)), "shape"), {"colour", "shape"}
    later = _about_it(rng, view, shape, asked)
    if not later:
        return None
    return _joined(opening, *(later[:2] if rng.random() < 0.25 else later[:1]))


def _about_it(rng: np.random.Generator, view: View, shape: Shape, asked: set[str]) -> list[Asked]:
    """Questions about the shape that were not asked yet, in random order."""
    made = []
    if "where" not in asked:
        where = _box(view, shape, f"the {shape.colour} {shape.kind}")
        made.append(single(vary(rng, pick(rng, _WHERE)), where, "boxes"))
    if "colour" not in asked:
        made.append(single(vary(rng, pick(rng, _COLOUR)), sentence(shape.colour), "colour"))
    if "shape" not in asked:
        made.append(single(vary(rng, pick(rng, _SHAPE)), sentence(a(shape.kind)), "shape"))
    side = pick(rng, tuple(SIDES))
    beside = on_side(view, shape, side)
    if beside is not None and (beside or rng.random() < 0.2):
        question = vary(rng, pick(rng, _SIDE).format(side=pick(rng, SIDES[side])))
        made.append(single(question, sentence(named(beside)) if beside else "Nothing.", "objects"))
    return [made[index] for index in rng.permutation(len(made))]


def _unrelated(rng: np.random.Generator, view: View) -> Asked | None:
    """Two or three questions that could each stand alone."""
    makers = (
        asking.count,
        asking.colour,
        asking.shape,
        asking.spatial,
        asking.locate,
        asking.exists,
        asking.count_none,
    )
    return _joined(*(pick(rng, makers)(rng, view) for _ in range(2 if rng.random() < 0.7 else 3)))


def _counting(rng: np.random.Generator, view: View, phrase: Phrase) -> Asked:
    nouns = phrase.noun(rng, plural=True)
    return single(say(rng, "count", things=nouns), counted(len(phrase.among(view.shapes)), nouns), "count")


def _box(view: View, shape: Shape, label: str) -> str:
    return grounded(label, [shape.box], view.size)


def _joined(*parts: Asked | None) -> Asked | None:
    """One conversation of all parts that could be asked, if they are at least two; the last one's fact counts."""
    made = [part for part in parts if part is not None]
    turns: tuple[Turn, ...] = tuple(turn for part in made for turn in part.turns)
    return Asked(turns, made[-1].fact) if len(made) > 1 else None

"""One question about one picture, a maker per task: a conversation and its fact, or None where it does not apply."""

from collections.abc import Callable

import numpy as np

from recipes.vl2_nano.facts import (
    Asked,
    Phrase,
    Turn,
    View,
    a,
    absent,
    counted,
    grounded,
    listed,
    missing,
    named,
    on_side,
    present,
    sentence,
    unique,
)
from recipes.vl2_nano.palette import pick, weighted
from recipes.vl2_nano.wording import SIDES, say

Maker = Callable[[np.random.Generator, View], Asked | None]


def single(question: str, answer: str, fact: str) -> Asked:
    """A conversation of one turn."""
    return Asked((Turn(question, answer),), fact)


def count(rng: np.random.Generator, view: View) -> Asked | None:
    """How many, by colour and kind, by one of them, or in all; large counts are as welcome as small ones."""
    by_number: dict[int, list[Phrase]] = {}
    for phrase in present(view):
        by_number.setdefault(len(phrase.among(view.shapes)), []).append(phrase)
    if not by_number:
        return None
    number = weighted(rng, {n: 0.6 if n == 1 else 1.0 for n in by_number})
    return _counting(rng, view, pick(rng, by_number[number]))


def count_none(rng: np.random.Generator, view: View) -> Asked | None:
    """How many of what is not there."""
    phrase = missing(rng, view) if view.shapes or rng.random() < 0.8 else Phrase()
    return None if phrase is None else _counting(rng, view, phrase)


def _counting(rng: np.random.Generator, view: View, phrase: Phrase) -> Asked:
    nouns = "shapes" if view.text and phrase == Phrase() else phrase.noun(rng, plural=True)
    number = len(phrase.among(view.shapes))
    return single(say(rng, "count", view.place, things=nouns), counted(number, nouns), "count")


def colour(rng: np.random.Generator, view: View) -> Asked | None:
    """The colour of a kind of shape: of the only one, or of all where several are there."""
    phrases = [phrase for phrase in present(view) if phrase.kind and not phrase.colour]
    if len(view.shapes) == 1 and rng.random() < 0.15:
        phrases = [Phrase()]
    if not phrases:
        return None
    phrase = pick(rng, phrases)
    matches = phrase.among(view.shapes)
    colours = list(dict.fromkeys(shape.colour for shape in matches))
    if len(matches) == 1 or (len(colours) == 1 and rng.random() < 0.3):
        question = say(rng, "colour", view.place, thing=phrase.noun(rng))
    else:
        question = say(rng, "colours", view.place, things=phrase.noun(rng, plural=True))
    return single(question, sentence(listed(colours)), "colour")


def colour_none(rng: np.random.Generator, view: View) -> Asked | None:
    """The colour of a kind of shape that is not there."""
    phrase = missing(rng, view, "kind")
    if phrase is None:
        return None
    noun = phrase.noun(rng)
    return single(say(rng, "colour", view.place, thing=noun), absent(noun, view), "denial")


def shape(rng: np.random.Generator, view: View) -> Asked | None:
    """The kind of the object of some colour, or the kinds where several have it."""
    phrases = [phrase for phrase in present(view) if phrase.colour and not phrase.kind]
    if not phrases:
        return None
    phrase = pick(rng, phrases)
    matches = phrase.among(view.shapes)
    kinds = list(dict.fromkeys(found.kind for found in matches))
    if len(matches) == 1:
        question = say(rng, "shape", view.place, thing=_thing(rng, phrase), colour=str(phrase.colour))
        return single(question, sentence(a(kinds[0])), "shape")
    question = say(rng, "shapes", view.place, things=f"{phrase.colour} objects", colour=str(phrase.colour))
    many = [f"{kind}s" if sum(found.kind == kind for found in matches) > 1 else a(kind) for kind in kinds]
    return single(question, sentence(listed(many)), "shape")


def shape_none(rng: np.random.Generator, view: View) -> Asked | None:
    """The kind of the object of a colour that nothing has."""
    phrase = missing(rng, view, "colour")
    if phrase is None:
        return None
    question = say(rng, "shape", view.place, thing=_thing(rng, phrase), colour=str(phrase.colour))
    return single(question, absent(f"{phrase.colour} object", view), "denial")


def _thing(rng: np.random.Generator, phrase: Phrase) -> str:
    return f"{phrase.colour} {pick(rng, ('object', 'object', 'thing', 'one', 'figure'))}"


def spatial(rng: np.random.Generator, view: View) -> Asked | None:
    """What lies on one side of a shape that a phrase names alone; sides on which nothing lies are asked less."""
    phrase = unique(rng, view)
    if phrase is None or (len(view.shapes) == 1 and rng.random() < 0.7):
        return None
    subject = phrase.among(view.shapes)[0]
    found = {side: on_side(view, subject, side) for side in SIDES}
    sides = {side: 1.0 if shapes else 0.2 for side, shapes in found.items() if shapes is not None}
    if not sides:
        return None
    side = weighted(rng, sides)
    question = say(rng, "spatial", view.place, side=pick(rng, SIDES[side]), thing=phrase.noun(rng))
    shapes = found[side]
    return single(question, sentence(named(shapes)) if shapes else "Nothing.", "objects")


def spatial_none(rng: np.random.Generator, view: View) -> Asked | None:
    """What lies beside a shape that is not there."""
    phrase = missing(rng, view)
    if phrase is None:
        return None
    noun = phrase.noun(rng)
    question = say(rng, "spatial", view.place, side=pick(rng, SIDES[pick(rng, tuple(SIDES))]), thing=noun)
    return single(question, absent(noun, view), "denial")


def exists(rng: np.random.Generator, view: View) -> Asked | None:
    """Whether something is there that is."""
    phrases = [phrase for phrase in present(view) if phrase != Phrase()]
    return _exists(rng, view, pick(rng, phrases)) if phrases else None


def exists_none(rng: np.random.Generator, view: View) -> Asked | None:
    """Whether something is there that is not."""
    phrase = missing(rng, view)
    return None if phrase is None else _exists(rng, view, phrase)


def _exists(rng: np.random.Generator, view: View, phrase: Phrase) -> Asked:
    noun = phrase.noun(rng)
    question = say(rng, "exists", view.place, a_thing=a(noun), things=f"{noun}s")
    if phrase.among(view.shapes):
        return single(question, "Yes.", "yes")
    return single(question, f"No, there is no {noun}.", "denial")


def is_colour(rng: np.random.Generator, view: View) -> Asked | None:
    """Whether the only shape of its kind has some colour; half the time it has another."""
    alone = [p for p in present(view) if p.kind and not p.colour and len(p.among(view.shapes)) == 1]
    if not alone:
        return None
    phrase = pick(rng, alone)
    true = phrase.among(view.shapes)[0].colour
    said = true if rng.random() < 0.5 else pick(rng, view.world.colours)
    question = say(rng, "is colour", view.place, thing=phrase.noun(rng), colour=said)
    return single(question, "Yes." if said == true else f"No, it is {true}.", "yes")


def describe(rng: np.random.Generator, view: View) -> Asked | None:
    """Everything there is, from left to right."""
    question = say(rng, "describe", view.place)
    if view.text:
        return single(question, f"A card with the text {view.text}.", "text")
    return single(question, _described(view, [a(f"{s.colour} {s.kind}") for s in view.shapes]), "objects")


def grounded_describe(rng: np.random.Generator, view: View) -> Asked | None:
    """The same with a box for each part."""
    question = say(rng, "grounded describe", view.place)
    if view.text:
        return single(question, f"A card with {grounded('the text', [view.text_box], view.size)} {view.text}.", "boxes")
    parts = [grounded(a(f"{s.colour} {s.kind}"), [s.box], view.size) for s in view.shapes]
    return single(question, _described(view, parts), "boxes")


def _described(view: View, parts: list[str]) -> str:
    return f"A picture with {len(parts)} shape{'s' if len(parts) > 1 else ''}: {listed(parts)}."


def locate(rng: np.random.Generator, view: View) -> Asked | None:
    """The boxes of everything a phrase names, or of the text."""
    if view.text:
        label = pick(rng, ("the text", "the text", "the characters", "the word"))
        question = say(rng, "locate", view.place, label=label, be="is" if label != "the characters" else "are")
        return single(question, grounded(label, [view.text_box], view.size), "boxes")
    phrases = present(view)
    if not phrases:
        return None
    exact = [phrase for phrase in phrases if phrase.colour and phrase.kind]
    return _locating(rng, view, pick(rng, exact if rng.random() < 0.6 else phrases))


def locate_none(rng: np.random.Generator, view: View) -> Asked | None:
    """The boxes of what is not there."""
    phrase = missing(rng, view)
    return None if phrase is None else _locating(rng, view, phrase)


def _locating(rng: np.random.Generator, view: View, phrase: Phrase) -> Asked:
    """The label of the answer is the phrase of the question, whichever it was; several matches share one label."""
    matches = phrase.among(view.shapes)
    plural = rng.random() < (0.12 if len(matches) < 2 else 0.5) or phrase == Phrase()
    noun = phrase.noun(rng, plural=plural)
    task, label = "locate", f"{pick(rng, ('the', 'the', 'all', 'all the') if plural else ('the',) * 9 + ('a',))} {noun}"
    if rng.random() < 0.12:
        task, label = "locate bare", noun
    label = label.replace("a orange", "an orange") if label.startswith("a orange") else label
    question = say(rng, task, view.place, label=label, be="are" if plural else "is")
    if matches:
        return single(question, grounded(label, [match.box for match in matches], view.size), "boxes")
    return single(question, absent(noun.removesuffix("s") if plural else noun, view), "denial")


def read(rng: np.random.Generator, view: View) -> Asked | None:
    """The text of a card, exactly."""
    return single(say(rng, "read", view.place), view.text, "text") if view.text else None


def read_none(rng: np.random.Generator, view: View) -> Asked | None:
    """The text of a picture that has none."""
    if view.text:
        return None
    if rng.random() < 0.3:
        return single(say(rng, "is text", view.place), "No, there is no text.", "denial")
    return single(say(rng, "read", view.place), absent("text", view), "denial")


def spell(rng: np.random.Generator, view: View) -> Asked | None:
    """A smaller question about a card: its first or last character, its length, its colour, whether it has text."""
    if not view.text:
        return None
    what = weighted(rng, {"first": 1, "last": 1, "length": 1, "colour": 0.8 if view.text_colour else 0, "is": 0.3})
    if what == "is":
        return single(say(rng, "is text", view.place), "Yes.", "yes")
    if what == "colour":
        question = say(rng, "colour", view.place, thing=pick(rng, ("text", "text", "writing")))
        return single(question, sentence(str(view.text_colour)), "colour")
    if what == "length":
        return single(say(rng, "length", view.place), str(len(view.text)), "count")
    character = view.text[0] if what == "first" else view.text[-1]
    return single(say(rng, f"{what} character", view.place), character, "text")

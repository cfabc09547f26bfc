"""The many ways a question is put: templates by task and the small variations of spelling, case and punctuation."""

from collections.abc import Mapping

import numpy as np

from recipes.vl2_nano.palette import pick

# {img} the picture or, of two, one of them; {col} colour or color; the rest is filled in by the task. The first of
# each list is the plainest and asked most. Where a question must say which of two pictures it means, the templates
# with {img} are the ones used.
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "count": (
        "How many {things} are there?",
        "How many {things} are there in {img}?",
        "How many {things} are in {img}?",
        "How many {things} can you see?",
        "How many {things} do you see in {img}?",
        "How many {things} does {img} contain?",
        "How many {things} are shown?",
        "How many {things}?",
        "How many {things} are there in total?",
        "Count the {things}.",
        "Count all {things} in {img}.",
        "What is the number of {things} in {img}?",
        "Tell me how many {things} there are.",
        "Number of {things}?",
    ),
    "colour": (
        "What {col} is the {thing}?",
        "What {col} is the {thing} in {img}?",
        "What is the {col} of the {thing}?",
        "What is the {col} of the {thing} in {img}?",
        "Which {col} is the {thing}?",
        "Which {col} does the {thing} have?",
        "Which {col} does the {thing} in {img} have?",
        "Tell me the {col} of the {thing}.",
        "Name the {col} of the {thing} in {img}.",
        "In {img}, what {col} is the {thing}?",
        "The {thing}: what {col} is it?",
        "What's the {col} of the {thing}?",
    ),
    "colours": (
        "What {col} are the {things}?",
        "What {col}s are the {things}?",
        "What {col}s are the {things} in {img}?",
        "What {col} are the {things} in {img}?",
        "Which {col}s do the {things} have?",
        "What are the {col}s of the {things}?",
        "Name the {col}s of the {things} in {img}.",
        "List the {col}s of the {things}.",
    ),
    "shape": (
        "What shape is the {thing}?",
        "What shape is the {thing} in {img}?",
        "What is the shape of the {thing}?",
        "What is the shape of the {thing} in {img}?",
        "What is the {thing}?",
        "What kind of shape is the {thing}?",
        "Which shape does the {thing} have?",
        "Which shape is {colour}?",
        "Which shape is {colour} in {img}?",
        "Which shape is the {thing}?",
        "What is {colour} in {img}?",
        "Tell me the shape of the {thing}.",
        "Name the shape of the {thing} in {img}.",
        "The {thing}: what shape is it?",
    ),
    "shapes": (
        "What shapes are the {things}?",
        "What shape are the {things}?",
        "What shapes are the {things} in {img}?",
        "Which shapes are {colour}?",
        "Which shapes are {colour} in {img}?",
        "What are the {things}?",
        "Name the shapes of the {things} in {img}.",
    ),
    "spatial": (
        "What is {side} the {thing}?",
        "What is {side} the {thing} in {img}?",
        "What do you see {side} the {thing}?",
        "What can you see {side} the {thing} in {img}?",
        "Which shapes are {side} the {thing}?",
        "Which objects are {side} the {thing} in {img}?",
        "What objects are {side} the {thing}?",
        "What shape is {side} the {thing}?",
        "Which object is {side} the {thing}?",
        "Name everything {side} the {thing}.",
        "Name everything {side} the {thing} in {img}.",
        "In {img}, what is {side} the {thing}?",
    ),
    "exists": (
        "Is there {a_thing}?",
        "Is there {a_thing} in {img}?",
        "Do you see {a_thing}?",
        "Can you see {a_thing} in {img}?",
        "Does {img} contain {a_thing}?",
        "Does {img} show {a_thing}?",
        "Are there any {things}?",
        "Are there any {things} in {img}?",
        "Are there {things} in {img}?",
        "Is {a_thing} in {img}?",
    ),
    "is colour": (
        "Is the {thing} {colour}?",
        "Is the {thing} in {img} {colour}?",
        "Is the {col} of the {thing} {colour}?",
        "Is the {col} of the {thing} in {img} {colour}?",
    ),
    "describe": (
        "Describe the image.",
        "Describe {img}.",
        "Describe {img} in detail.",
        "What is in {img}?",
        "What can you see in {img}?",
        "What do you see?",
        "What does {img} show?",
        "What is shown in {img}?",
        "Give a description of {img}.",
        "Tell me what is in {img}.",
        "Describe what you see.",
        "Please describe {img}.",
        "Can you describe {img}?",
        "List all the objects in {img}.",
    ),
    "read": (
        "Read the text.",
        "Read the text in {img}.",
        "What does it say?",
        "What does {img} say?",
        "What does the card say?",
        "What does the text say?",
        "What does the text in {img} say?",
        "What does the sign say?",
        "What is the text on the card?",
        "What text is in {img}?",
        "What is written here?",
        "What is written in {img}?",
        "What is written on the card?",
        "What is the text?",
        "What is the text in {img}?",
        "Which text do you see?",
        "Which characters are in {img}?",
        "Which letters and digits do you see?",
        "Transcribe the text in {img}.",
        "Transcribe the text.",
        "Read it.",
        "Read the card.",
        "Read the characters.",
        "Please read the text in {img}.",
        "Can you read the text?",
        "OCR.",
    ),
    "first character": (
        "What is the first character?",
        "What is the first character of the text in {img}?",
        "Which character comes first?",
        "Read the first character.",
    ),
    "last character": (
        "What is the last character?",
        "What is the last character of the text in {img}?",
        "Which character comes last?",
        "Read the last character.",
    ),
    "length": (
        "How many characters are there?",
        "How many characters are in {img}?",
        "How many characters does the text have?",
        "How many characters does the text in {img} have?",
        "How long is the text?",
        "Count the characters in {img}.",
    ),
    "is text": (
        "Is there any text?",
        "Is there text in {img}?",
        "Does {img} contain text?",
        "Do you see any text in {img}?",
    ),
    "locate": (
        "<|grounding|>Locate <|ref|>{label}<|/ref|>.",
        "<|grounding|>Locate <|ref|>{label}<|/ref|> in {img}.",
        "<|grounding|>Find <|ref|>{label}<|/ref|>.",
        "<|grounding|>Find <|ref|>{label}<|/ref|> in {img}.",
        "<|grounding|>Where {be} <|ref|>{label}<|/ref|>?",
        "<|grounding|>Where {be} <|ref|>{label}<|/ref|> in {img}?",
        "<|grounding|>Detect <|ref|>{label}<|/ref|>.",
        "<|grounding|>Show me <|ref|>{label}<|/ref|>.",
        "<|grounding|><|ref|>{label}<|/ref|>",
        "<|ref|>{label}<|/ref|>.",
        "Locate <|ref|>{label}<|/ref|>.",
        "Locate <|ref|>{label}<|/ref|> in {img}.",
        "Where {be} <|ref|>{label}<|/ref|>?",
        "<|grounding|>Locate {label}.",
        "Locate {label}.",
        "Locate {label} in {img}.",
        "Find {label}.",
        "Find {label} in {img}.",
        "Where {be} {label}?",
        "Where {be} {label} in {img}?",
        "Point to {label}.",
        "Draw a box around {label}.",
        "Give the bounding box of {label}.",
        "What is the bounding box of {label} in {img}?",
    ),
    "locate bare": (
        "<|grounding|>Locate the <|ref|>{label}<|/ref|>.",
        "<|grounding|>Locate the <|ref|>{label}<|/ref|> in {img}.",
        "<|grounding|>Find the <|ref|>{label}<|/ref|>.",
        "<|grounding|><|ref|>{label}<|/ref|>",
        "Where {be} the <|ref|>{label}<|/ref|>?",
    ),
    "grounded describe": (
        "<|grounding|>Describe the image.",
        "<|grounding|>Describe {img}.",
        "<|grounding|>What is in {img}?",
        "<|grounding|>Can you describe {img}?",
        "<|grounding|>List all the objects in {img}.",
    ),
    "more": (
        "Which image has more {things}?",
        "Which image has more {things}, the first or the second?",
        "Which of the two images has more {things}?",
        "Which picture has more {things}?",
        "Which picture contains more {things}?",
        "In which image are there more {things}?",
        "Where are more {things}, in the first or in the second image?",
        "Does the first or the second image have more {things}?",
        "Which one has more {things}?",
        "Which image shows more {things}?",
    ),
    "fewer": (
        "Which image has fewer {things}?",
        "Which picture has fewer {things}?",
        "Which of the two images has fewer {things}?",
        "In which image are there fewer {things}?",
    ),
    "which has": (
        "Which image has {a_thing}?",
        "Which image contains {a_thing}?",
        "Which picture shows {a_thing}?",
        "In which image is there {a_thing}?",
        "Is {a_thing} in the first or the second image?",
        "In which picture do you see {a_thing}?",
    ),
    "together": (
        "How many {things} are in both images together?",
        "How many {things} are there in total?",
        "How many {things} do the two images have together?",
    ),
}
SIDES: Mapping[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "lower than"),
}
_WHOLE = ("the image", "the picture", "this image", "this picture")
_ONE_OF_TWO = (
    ("the first image", "the first picture", "image 1"),
    ("the second image", "the second picture", "image 2"),
)
_HINTS = ("Answer briefly.", "Answer with one word.", "Be brief.", "Answer in short.")


def say(rng: np.random.Generator, task: str, place: int | None = None, **slots: str) -> str:
    """A question of ``task``; ``place`` is 0 or 1 where it is about the first or the second of two pictures."""
    templates = WORDINGS[task] if place is None else tuple(text for text in WORDINGS[task] if "{img}" in text)
    template = templates[0] if rng.random() < 0.15 else pick(rng, templates)
    spelling = "colour" if rng.random() < 0.5 else "color"
    where = pick(rng, _WHOLE if place is None else _ONE_OF_TWO[place])
    return vary(rng, template.format(img=where, col=spelling, **slots))


def vary(rng: np.random.Generator, text: str) -> str:
    """The same question as people type it: now and then in lower case, without its last mark, or asking to be brief."""
    roll = rng.random()
    if roll < 0.06:
        return text.lower()
    if roll < 0.12:
        return text.rstrip(".?")
    if roll < 0.15:
        return text.lower().rstrip(".?")
    if roll < 0.18 and text[-1] in ".?" and "<|" not in text:
        return f"{text} {pick(rng, _HINTS)}"
    return text

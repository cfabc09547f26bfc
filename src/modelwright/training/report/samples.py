"""``samples/step-000200/``: what a model answers to some held-out rows, beside what stands there, with pictures."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modelwright.errors import UserError
from modelwright.processing import draw_groundings, parse_grounding

FOLDER, FILE = "samples", "answers.md"


class Sample(Protocol):
    """One answer."""

    @property
    def place(self) -> str:
        """The row's file and line."""
        ...

    @property
    def prompt(self) -> str:
        """What was asked, as the model reads it; empty where the picture says it."""
        ...

    @property
    def wanted(self) -> str | None:
        """What the row answers; None where any answer goes."""
        ...

    @property
    def said(self) -> str:
        """What the model answers; empty where it draws."""
        ...

    @property
    def exact(self) -> bool | None:
        """Whether that is what was wanted; None where nothing was."""
        ...

    @property
    def pictures(self) -> Sequence[Any]:
        """What was shown, as `processing.load_image` reads it."""
        ...

    @property
    def drawn(self) -> Any:
        """A picture of what the model drew; None where it writes."""
        ...


def write_samples(folder: Path, step: int, samples: Mapping[str, Sequence[Sample]]) -> Path:
    """Write the answers of a step, by set, into a folder of their own, which replaces that of an earlier run's step.

    Boxes in an answer are drawn on the last picture that was shown. Returns the folder.

    Raises:
        OSError: they cannot be written.
    """
    place = folder / FOLDER / f"step-{step:06d}"
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    lines = [f"# Answers after step {step}", ""]
    number = 0
    for name, answers in samples.items():
        for sample in answers:
            number += 1
            lines += [f"## {name}: {sample.place}", "", *_pictures(part, number, sample)]
            lines += _quoted("asked", sample.prompt)
            lines += [] if sample.wanted is None else _quoted("wanted", sample.wanted)
            lines += _quoted("answered", sample.said) if sample.drawn is None else []
    (part / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    shutil.rmtree(place, ignore_errors=True)
    os.replace(part, place)
    return place


def _pictures(folder: Path, number: int, sample: Sample) -> list[str]:
    """Save the pictures of an answer, and link to them."""
    shown = [sample.drawn] if sample.drawn is not None else _with_boxes(sample)
    lines = []
    for place, picture in enumerate(shown, 1):
        name = f"{number}.png" if len(shown) == 1 else f"{number}-{place}.png"
        picture.save(folder / name)
        lines += [f"![{name}]({name})", ""]
    return lines


def _with_boxes(sample: Sample) -> list[Any]:
    """What was shown, with what the answer points at."""
    pictures = [draw_groundings(picture, []) for picture in sample.pictures]
    if not pictures:
        return []
    try:
        found = parse_grounding(sample.said, [picture.size for picture in pictures])
    except UserError:
        found = []
    return [*pictures[:-1], draw_groundings(pictures[-1], found)]


def _quoted(what: str, text: str) -> list[str]:
    """A text as it is, in a fence that it does not hold itself."""
    if not text:
        return []
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{what}:", "", fence, text, fence, ""]

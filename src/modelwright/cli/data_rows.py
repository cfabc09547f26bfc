"""A row of training data as a model sees it, in words: documents, what is learned of them, pictures, and padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from modelwright.cli.console import harmless
from modelwright.data.documents import UNLEARNED, StepBatch

Kind = Literal["border", "read", "learned", "picture", "padding"]
OPENS, CLOSES = "\u27e6", "\u27e7"
"""Around what is learned, where there are no colours."""
STYLES: dict[Kind, str] = {
    "border": "dim",
    "read": "",
    "learned": "bold green",
    "picture": "cyan",
    "padding": "dim",
}
_SHOWN_COLOURS = 12
_READ, _LEARNED, _PICTURE = 0, 1, 2


@dataclass(frozen=True)
class Piece:
    """A stretch of a row that is of one kind."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Row:
    """A row of a step of one row: n tokens.

    Attributes:
        ids, labels: int64 [n].
        documents: int64 [n], the number of each token's document; the padding's is one more than the last.
        shows: bool [n], true where a picture's row replaces the token.
        grids: (columns, rows) of each picture's local tiles.
        places: of each document, ``file:line``.
    """

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    shows: np.ndarray
    grids: tuple[tuple[int, int], ...]
    places: tuple[str, ...]

    @classmethod
    def of(cls, batch: StepBatch) -> "Row":
        """The one row of a step."""
        [micro] = batch.micro
        given = {name: values[0].numpy() for name, values in micro.items()}
        ids = given["input_ids"]
        return cls(
            ids,
            given["labels"][: len(ids)],
            given.get("seq_idx", np.zeros(len(ids), np.int64)),
            given.get("images_seq_mask", np.zeros(len(ids), bool)),
            tuple((int(w), int(h)) for w, h in given.get("images_spatial_crop", ())),
            tuple(map(str, batch.places)),
        )


def pieces_of(row: Row, encoder: Any) -> Iterator[Piece]:
    """What stands in a row.

    Args:
        row: of a step.
        encoder: what made its documents, by a ``tokenizer``, by ``prompts``, or by the colours of ``pixels``.
    """
    grids = iter(row.grids)
    for number in range(len(row.places) + 1):
        first, last = (int(edge) for edge in np.searchsorted(row.documents, (number, number + 1)))
        if number == len(row.places):
            if last > first:
                yield Piece("padding", f"--- {last - first} tokens of padding\n")
            return
        learned = row.labels[first:last] != UNLEARNED
        counts = f"{last - first} tokens, {int(learned.sum())} learned"
        yield Piece("border", f"--- document {number + 1}: {row.places[number]}, {counts}\n")
        if hasattr(encoder, "pixels"):
            yield _colours(row.ids[first:last])
        else:
            codes = np.where(row.shows[first:last], _PICTURE, learned.astype(int))
            yield from _words(row.ids[first:last], codes, grids, encoder)
        yield Piece("border", "\n")


def plain(pieces: Sequence[Piece]) -> str:
    """The row without colours: what is learned stands in brackets."""
    return "".join(f"{OPENS}{each.text}{CLOSES}" if each.kind == "learned" else each.text for each in pieces)


def _words(ids: np.ndarray, codes: np.ndarray, grids: Iterator[tuple[int, int]], encoder: Any) -> Iterator[Piece]:
    """Stretches of equal code; each is decoded after all before it, because blanks depend on what comes before."""
    prompts = getattr(encoder, "prompts", None)
    tokenizer = encoder.tokenizer if prompts is None else prompts.tokenizer
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    for first, last in pairwise(edges):
        if codes[first] != _PICTURE:
            before, text = (tokenizer.decode(ids[:end].tolist(), skip_special_tokens=False) for end in (first, last))
            yield Piece("learned" if codes[first] == _LEARNED else "read", harmless(text[len(before) :]))
            continue
        while first < last:
            grid = next(grids)
            taken = last - first if prompts is None else prompts.num_image_tokens(grid)
            tiles = f"{grid[0]} x {grid[1]} tiles and the whole" if grid[0] * grid[1] > 1 else "one tile"
            yield Piece("picture", f"[picture: {tiles}, {taken} tokens]")
            first += taken


def _colours(ids: np.ndarray) -> Piece:
    shown = " ".join(map(str, ids[:_SHOWN_COLOURS]))
    rest = f" and {len(ids) - _SHOWN_COLOURS} more" if len(ids) > _SHOWN_COLOURS else ""
    return Piece("picture", f"[colours {shown}{rest}]")

"""What a row becomes for a model, and what an optimizer step is handed; no tokenizer, no files, no torch.

Torch is left out so that worker processes, which make documents, need not import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from modelwright.data.examples import Example, Place

UNLEARNED = -100
"""The label of a token that is not learned, torch's ``ignore_index``."""


@dataclass(frozen=True, eq=False)
class Document:
    """One row as a model reads it: n tokens, m pictures of t tiles together.

    Attributes:
        ids: int64 [n].
        labels: int64 [n], `UNLEARNED` where nothing is learned. ``labels[i]`` is of token ``i`` itself, so the first,
            which nothing foresees, is never learned.
        place: where the row stands.
        tiles: float32 [t, 3, s, s], the pictures' one after the other, of each the global view first; None where there
            are no pictures, and in an outline (`Encoder.outline`).
        grids: (columns, rows) of each picture's local tiles.
        picture_mask: bool [n], true where a picture's row replaces the token; None where there are no pictures.
        reads_last: whether the last token enters the model. What is only foreseen (a picture's last pixel, for which
            there is no position) is left out of the input.

    Raises:
        AssertionError: shapes that do not fit each other, which is a mistake of the encoder.
    """

    ids: np.ndarray
    labels: np.ndarray
    place: Place
    tiles: np.ndarray | None = None
    grids: tuple[tuple[int, int], ...] = ()
    picture_mask: np.ndarray | None = None
    reads_last: bool = True

    def __post_init__(self) -> None:
        assert self.ids.ndim == 1 and self.ids.shape == self.labels.shape
        assert len(self.labels) == 0 or self.labels[0] == UNLEARNED
        assert self.picture_mask is None or self.picture_mask.shape == self.ids.shape
        assert (self.picture_mask is None) == (not self.grids)
        assert self.tiles is None or len(self.tiles) == sum(1 + columns * rows for columns, rows in self.grids)

    def __len__(self) -> int:
        """The tokens that enter the model."""
        return len(self.ids) - (not self.reads_last)

    @cached_property
    def counted(self) -> int:
        """How many labels are learned."""
        return int((self.labels != UNLEARNED).sum())

    @property
    def is_outline(self) -> bool:
        """Whether the pixels of its pictures are still to be read."""
        return bool(self.grids) and self.tiles is None

    def cut(self, most: int, picture_tokens: tuple[int, ...] = ()) -> Self:
        """The first ``most`` tokens. A picture is never cut: where one would be, the document ends before it.

        Args:
            picture_tokens: how many tokens each picture takes, in order.
        """
        if len(self.ids) <= most:
            return self
        if self.picture_mask is None:
            return replace(self, ids=self.ids[:most], labels=self.labels[:most], reads_last=True)
        starts, whole, seen = np.flatnonzero(self.picture_mask), 0, 0
        for tokens in picture_tokens:
            start = int(starts[seen])
            if start + tokens > most:
                most = min(most, start)
                break
            whole, seen = whole + 1, seen + tokens
        grids = self.grids[:whole]
        tiles = None if self.tiles is None else self.tiles[: sum(1 + columns * rows for columns, rows in grids)]
        return replace(
            self,
            ids=self.ids[:most],
            labels=self.labels[:most],
            tiles=tiles if grids else None,
            grids=grids,
            picture_mask=self.picture_mask[:most] if grids else None,
        )


class Encoder(Protocol):
    """Makes documents of rows; `encoding.encoder_of` gives the one for a model's processor. It can be pickled.

    Attributes:
        packs: whether the model keeps documents of one row apart.
        pad_id: what fills the tail of a row.
    """

    packs: bool
    pad_id: int

    def __call__(self, example: Example) -> Document:
        """The document of a row; raises `BrokenRow` where it cannot be read, and `Unlearned` where it teaches nothing.

        The same row always gives the same document.
        """
        ...

    def outline(self, example: Example) -> Document:
        """The document without the pixels of its pictures, of which only the sizes are read."""
        ...


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step learns from.

    Attributes:
        micro: of each pass, the keyword arguments of the model: int64 ``input_ids`` and ``labels`` [rows, tokens] (the
            labels of ImageGPT have a token more, the last pixel, which is foreseen and never read). Where rows are
            packed, ``seq_idx`` [rows, tokens] numbers the documents and ``position_ids`` [rows, tokens] start anew with
            each; otherwise ``attention_mask`` [rows, tokens], where rows differ in length. Where a row shows pictures
            ``images`` [rows, tiles, 3, s, s], ``images_seq_mask`` [rows, tokens], ``images_spatial_crop``
            [rows, pictures, 2].
        counted: labels that count in the whole step, after the shift.
        tokens: real tokens of the whole step, without padding.
        sequences: documents of the whole step.
        places: the rows of the files that are in it, in order.
        broken: how many rows were left out so far.
    """

    micro: tuple[Mapping[str, Any], ...]
    counted: int
    tokens: int
    sequences: int
    places: tuple[Place, ...]
    broken: int = 0


class Batches(Protocol):
    """The steps of a run, one after the other and without end: after the last row of an epoch comes the next epoch."""

    def sources(self) -> list[dict[str, Any]]:
        """The ``name``, ``format`` and ``rows`` of each source, and where there are any its rows' ``unread`` names."""
        ...

    def steps_in(self, epochs: int) -> int:
        """How many steps the first so many epochs have; where rows are packed, all documents are made to know it.

        Packing may need a row more or less in another epoch's order.
        """
        ...

    def steps_left(self, epochs: int) -> int:
        """How many steps come from here on to the end of the first so many epochs, without those passed over.

        At the beginning they are ``steps_in(epochs)``, unless the first are passed over; 0 where that end is behind.
        """
        ...

    def steps_until(self, epochs: int) -> int:
        """How many steps come from here on to the next end of so many epochs: 1 or more, as where none ever comes."""
        ...

    def tokens_in(self, epochs: int) -> int:
        """How many real tokens the first so many epochs have; all documents are made to know it."""
        ...

    def __iter__(self) -> Self: ...

    def __next__(self) -> StepBatch:
        """The next step; raises RequestError where a row is broken, or a worker died."""
        ...

    def state(self) -> dict[str, Any]:
        """Where the run stands, for JSON: after what was handed out, whatever workers have made ahead."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after ``state``; raises CheckpointError where files or settings are others than then."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...

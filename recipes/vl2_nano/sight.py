"""What each patch of each tile shows, as targets to train the vision tower on before it meets the language model.

The tower learns to say, patch by patch, which shape or character covers the patch's centre, in which colour, and where
in the tile that thing begins and ends; in the global view also where in the picture, whose border it can see there. The
heads that say so are thrown away afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from modelwright.processing.image_processor import TileImageProcessor
from recipes.vl2_nano.palette import COLOURS
from recipes.vl2_nano.pictures import ALPHABET, KINDS, Card, Scene, draw_card, draw_scene

WHATS = ("nothing", *KINDS, *ALPHABET)
HUES = ("none", *COLOURS)


@dataclass(frozen=True)
class Thing:
    """A shape or a character: indices into ``WHATS`` and ``HUES``, and its box in pixels of the picture."""

    what: int
    hue: int
    box: tuple[float, float, float, float]


def things_in(item: Scene | Card) -> list[Thing]:
    """Everything to be seen in a picture."""
    if isinstance(item, Scene):
        return [Thing(WHATS.index(s.kind), HUES.index(s.colour), s.box) for s in item.shapes]
    _, top, _, bottom = item.box
    hue = HUES.index(item.colour) if item.colour in HUES else 0
    spans = zip(item.text, item.cuts, item.cuts[1:], strict=False)
    return [Thing(WHATS.index(letter), hue, (left, top, right, bottom)) for letter, left, right in spans]


class Sights(IterableDataset):
    """Batches of tiles ``[n, 3, S, S]`` with targets for every patch.

    ``what`` and ``hue`` are ``[n, patches]``, ``box`` and ``place`` ``[n, patches, 4]``; ``place`` is NaN outside the
    global view.
    """

    def __init__(self, cut: TileImageProcessor, patch: int, batch: int, seed: int, cards: float = 0.5):
        self.cut, self.patch, self.batch, self.seed, self.cards = cut, patch, batch, seed, cards

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            drawn = [draw_card(rng) if rng.random() < self.cards else draw_scene(rng) for _ in range(self.batch)]
            parts = [self._targets(item) for item in drawn]
            yield {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def _targets(self, item: Scene | Card) -> dict[str, np.ndarray]:
        tiles = self.cut(item.picture)
        side, (columns, rows) = self.cut.image_size, tiles.grid
        things = things_in(item)
        parts = [self._patches(things, item.picture.size, (side, side))]
        for top in range(0, rows * side, side):
            for left in range(0, columns * side, side):
                parts.append(self._patches(things, item.picture.size, (columns * side, rows * side), (left, top)))
        what, hue, box, place = (np.stack(each) for each in zip(*parts, strict=True))
        return {"tiles": tiles.pixels, "what": what, "hue": hue, "box": box, "place": place}

    def _patches(
        self,
        things: list[Thing],
        size: tuple[int, int],
        canvas: tuple[int, int],
        corner: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Targets of the global view, or of the tile that begins at ``corner`` of the canvas the picture fills."""
        side = self.cut.image_size
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        margin = [(length - scale * own) / 2 for length, own in zip(canvas, size, strict=True)]
        count = side // self.patch
        centres = (np.arange(count) + 0.5) * self.patch
        what, hue = np.zeros((2, count, count), np.int64)
        boxes = np.zeros((count, count, 4), np.float32)
        places = np.full((count, count, 4), np.nan, np.float32)
        for thing in things:
            corners = np.array(thing.box).reshape(2, 2)  # rows (x1, y1), (x2, y2)
            box = corners * scale + margin - (corner or (0, 0))  # in the tile's pixels
            inside_x = (centres >= box[0, 0]) & (centres < box[1, 0])
            inside_y = (centres >= box[0, 1]) & (centres < box[1, 1])
            covered = inside_y[:, None] & inside_x[None, :]
            what[covered], hue[covered] = thing.what, thing.hue
            boxes[covered] = box.clip(0, side).reshape(4) / side
            if corner is None:
                places[covered] = np.array(thing.box) / (*size, *size)
        return what.reshape(-1), hue.reshape(-1), boxes.reshape(-1, 4), places.reshape(-1, 4)


class PatchHeads(nn.Module):
    """Linear readings of a patch's features, and the loss of a batch of :class:`Sights`."""

    def __init__(self, width: int):
        super().__init__()
        self.what = nn.Linear(width, len(WHATS))
        self.hue = nn.Linear(width, len(HUES))
        self.box = nn.Linear(width, 4)
        self.place = nn.Linear(width, 4)

    def forward(self, features: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``[n, patches, width]`` to the four losses and ``right``, the share of things named right."""
        seen = batch["what"] > 0
        named = self.what(features).float()
        hues = self.hue(features).float()
        whole = ~batch["place"].isnan().any(dim=-1)
        misses = F.l1_loss(self.box(features).float()[seen], batch["box"][seen])
        misplaced = F.l1_loss(self.place(features).float()[whole], batch["place"][whole])
        return {
            "what": F.cross_entropy(named.flatten(0, 1), batch["what"].flatten()),
            "hue": F.cross_entropy(hues.flatten(0, 1), batch["hue"].flatten()),
            "box": 5 * misses,
            "place": 5 * misplaced,
            "right": (named.argmax(-1) == batch["what"])[seen].float().mean(),
        }

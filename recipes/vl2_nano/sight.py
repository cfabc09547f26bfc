"""What each patch of each tile shows, as targets for the vision tower and for the rows that the language model reads.

The tower learns to say, patch by patch, which shape or character covers the patch's centre, in which colour, and where
in the tile that thing begins and ends; in the global view also where in the picture, whose border it can see there. The
projected rows learn to lie near the embeddings of the words for what they show, so that a question's words find them.
The heads that read all this are thrown away afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.processing.image_processor import TileImageProcessor
from recipes.vl2_nano.palette import COLOURS
from recipes.vl2_nano.pictures import ALPHABET, Card, Scene, Sheet, draw_card, draw_scene, draw_sheet
from recipes.vl2_nano.world import KINDS

WHATS = ("nothing", *KINDS, *ALPHABET)
HUES = ("none", *COLOURS)
MOST = 6  # things in a picture
UNCOUNTED = -100  # what cross-entropy passes over


@dataclass(frozen=True)
class Thing:
    """A shape or a character: indices into ``WHATS`` and ``HUES``, its box in pixels, its turn from the left (1 on).

    The turn of a character among the lines of a sheet is ``UNCOUNTED``.
    """

    what: int
    hue: int
    box: tuple[float, float, float, float]
    turn: int


def things_in(item: Scene | Card | Sheet) -> list[Thing]:
    """Everything to be seen in a picture."""
    if isinstance(item, Sheet):
        return [Thing(WHATS.index(letter), 0, box, UNCOUNTED) for letter, box in item.characters]
    if isinstance(item, Scene):
        shapes = sorted(item.shapes, key=lambda shape: shape.box)
        return [Thing(WHATS.index(s.kind), HUES.index(s.colour), s.box, n) for n, s in enumerate(shapes, start=1)]
    _, top, _, bottom = item.box
    hue = HUES.index(item.colour) if item.colour in HUES else 0
    spans = enumerate(zip(item.text, item.cuts, item.cuts[1:], strict=False), start=1)
    return [Thing(WHATS.index(letter), hue, (left, top, right, bottom), n) for n, (letter, left, right) in spans]


class Sights:
    """Draws batches of tiles ``[n, 3, S, S]`` with targets for every patch.

    ``what``, ``hue`` and ``turn`` are ``[n, patches]``, ``box`` and ``place`` ``[n, patches, 4]``; outside the global
    view ``turn`` is -100 and ``place`` NaN. ``mix`` holds the shares of scenes, cards and sheets.
    """

    def __init__(
        self, cut: TileImageProcessor, patch: int, batch: int, mix: tuple[float, float, float] = (0.4, 0.4, 0.2)
    ):
        self.cut, self.patch, self.batch, self.mix = cut, patch, batch, mix

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """A batch."""
        parts = [self._targets(self._draw(rng)) for _ in range(self.batch)]
        return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def _draw(self, rng: np.random.Generator) -> Scene | Card | Sheet:
        scene, card, _ = (share / sum(self.mix) for share in self.mix)
        roll = rng.random()
        if roll < scene:
            return draw_scene(rng)
        return draw_card(rng) if roll < scene + card else draw_sheet(rng, 2 * self.cut.image_size)

    def _targets(self, item: Scene | Card | Sheet) -> dict[str, np.ndarray]:
        tiles = self.cut(item.picture)
        side, (columns, rows) = self.cut.image_size, tiles.grid
        things = things_in(item)
        parts = [self._patches(things, item.picture.size, (side, side))]
        for top in range(0, rows * side, side):
            for left in range(0, columns * side, side):
                parts.append(self._patches(things, item.picture.size, (columns * side, rows * side), (left, top)))
        names = ("what", "hue", "turn", "box", "place")
        targets = zip(names, zip(*parts, strict=True), strict=True)
        return {"tiles": tiles.pixels} | {name: np.stack(each) for name, each in targets}

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
        turn = np.full((count, count), 0 if corner is None else UNCOUNTED, np.int64)
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
                turn[covered] = thing.turn
        return what.reshape(-1), hue.reshape(-1), turn.reshape(-1), boxes.reshape(-1, 4), places.reshape(-1, 4)


class PatchHeads(nn.Module):
    """Linear readings of a patch's features, and the loss of a batch of :class:`Sights`."""

    def __init__(self, width: int):
        super().__init__()
        self.what = nn.Linear(width, len(WHATS))
        self.hue = nn.Linear(width, len(HUES))
        self.turn = nn.Linear(width, MOST + 1)
        self.box = nn.Linear(width, 4)
        self.place = nn.Linear(width, 4)

    def forward(self, features: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``[n, patches, width]`` to the five losses and ``right``, the share of things named right."""
        seen = batch["what"] > 0
        named = self.what(features).float()
        hues = self.hue(features).float()
        whole = ~batch["place"].isnan().any(dim=-1)
        misses = F.l1_loss(self.box(features).float()[seen], batch["box"][seen])
        misplaced = F.l1_loss(self.place(features).float()[whole], batch["place"][whole])
        return {
            "what": F.cross_entropy(named.flatten(0, 1), batch["what"].flatten()),
            "hue": F.cross_entropy(hues.flatten(0, 1), batch["hue"].flatten()),
            "turn": F.cross_entropy(self.turn(features).float().flatten(0, 1), batch["turn"].flatten()),
            "box": 5 * misses,
            "place": 5 * misplaced,
            "right": (named.argmax(-1) == batch["what"])[seen].float().mean(),
        }


class RowHeads(nn.Module):
    """What a projected row shows, read as a mixture of word embeddings; what, in which turn and where, read linearly.

    Args:
        width: of a row; patches: how many a row joins.
        words: token ids of the words for ``WHATS`` and for ``HUES``.
    """

    sharpness = 12.0  # of the softmax over cosines

    def __init__(self, width: int, patches: int, words: tuple[list[int], list[int]]):
        super().__init__()
        self.whats, self.hues = (torch.tensor(ids) for ids in words)
        self.what = nn.Linear(width, patches * len(WHATS))
        self.turn = nn.Linear(width, patches * (MOST + 1))
        self.box = nn.Linear(width, 4)
        self.place = nn.Linear(width, 4)
        self.digits = nn.Linear(width, 4 * 2 * 10)

    def forward(self, rows: Tensor, embeddings: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``[n, rows, width]`` and ``[vocabulary, width]`` to the losses, named after :class:`PatchHeads`'s."""
        groups = _by_row(batch, rows.shape[1])
        cosines = F.normalize(rows.float(), dim=-1) @ F.normalize(embeddings.float(), dim=-1).T
        wanted = self._mixture(groups["what"], groups["hue"], len(embeddings))
        named = F.cross_entropy(self.sharpness * cosines.flatten(0, 1), wanted.flatten(0, 1))
        pick = (groups["what"] > 0).long().argmax(dim=-1)  # the first of a row's patches that shows a thing
        seen = (groups["what"] > 0).any(dim=-1)
        box, place = (_picked(groups[name], pick) for name in ("box", "place"))
        whole = seen & ~place.isnan().any(dim=-1)
        return {
            "words": named,
            "row_what": _apart(self.what(rows), groups["what"]),
            "row_turn": _apart(self.turn(rows), groups["turn"]),
            "row_box": 5 * F.l1_loss(self.box(rows).float()[seen], box[seen]),
            "row_place": 5 * F.l1_loss(self.place(rows).float()[whole], place[whole]),
            "row_digits": _apart(self.digits(rows)[whole], _digits(place[whole]).flatten(1)),
        }

    def _mixture(self, what: Tensor, hue: Tensor, vocabulary: int) -> Tensor:
        """``[n, rows, vocabulary]``: an even share for the words of each patch that shows a thing, else "nothing"'s."""
        seen, coloured = (what > 0).float(), (hue > 0).float()
        weight = torch.zeros(*what.shape[:2], vocabulary)
        weight.scatter_add_(2, self.whats[what], seen)
        weight.scatter_add_(2, self.hues[hue], coloured)
        weight[..., self.whats[0]] += (seen.sum(dim=-1) == 0).float()
        return weight / weight.sum(dim=-1, keepdim=True)


def word_tokens(encode: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """Token ids of the words for ``WHATS`` and ``HUES``, as they stand within a sentence."""
    whats = [" no", *(f" {kind}" for kind in KINDS), *ALPHABET]
    hues = [" no", *(f" {colour}" for colour in COLOURS)]
    found = [[encode(word) for word in words] for words in (whats, hues)]
    assert all(len(ids) == 1 for each in found for ids in each), "every word must be one token"
    return [ids[0] for ids in found[0]], [ids[0] for ids in found[1]]


def _by_row(batch: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Patch targets grouped by the row that joins them: ``[n, rows, patches of a row, ...]``."""
    patches = batch["what"].shape[1]
    side, ratio = math.isqrt(patches), math.isqrt(patches // rows)
    order = torch.arange(patches).view(side // ratio, ratio, side // ratio, ratio).transpose(1, 2).reshape(rows, -1)
    return {name: batch[name][:, order] for name in ("what", "hue", "turn", "box", "place")}


def _apart(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of ``[..., k * classes]`` against ``[..., k]``."""
    return F.cross_entropy(scores.float().unflatten(-1, (wanted.shape[-1], -1)).flatten(0, -2), wanted.flatten())


def _digits(place: Tensor) -> Tensor:
    """``[n, 4]`` shares of the picture to ``[n, 4, 2]``: the hundreds and the tens of the coordinates of an answer."""
    tens = (99.9 * place).round().long().clamp(max=99)
    return torch.stack((tens // 10, tens % 10), dim=-1)


def _picked(values: Tensor, pick: Tensor) -> Tensor:
    """``[n, rows, patches, 4]`` at the patch chosen for each row: ``[n, rows, 4]``."""
    return values.gather(2, pick[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)

"""The sizes of what stands before the decoder where pictures come in: tower, projector, and the rows of a picture."""

from dataclasses import dataclass

from modelwright.configs.tiling import Size, image_token_count, tile_count, tile_grid
from modelwright.planner.parts import ByPart
from modelwright.planner.shapes import Layer, Linear


@dataclass(frozen=True)
class Rows:
    """A linear layer and how many rows of one tile pass through it."""

    count: int
    linear: Linear

    @property
    def flops(self) -> int:
        """Of one tile."""
        return self.count * self.linear.flops


@dataclass(frozen=True)
class Tower:
    """A vision transformer: `patch` embeds each of `patches` squares of a tile, `blocks` see `tokens` rows at once.

    `tokens` are the patches and, where there is one, the class token. `learned` are the parameters of positions, class
    token, norms after the blocks and a pooling query. `head` is what pools and classifies, usually nothing;
    `pooled_width` are the channels, over all heads, of the pooling query, where there is one.
    """

    patch: Linear
    patches: int
    tokens: int
    blocks: tuple[Layer, ...]
    learned: int
    head: tuple[Rows, ...] = ()
    pooled_width: int = 0

    @property
    def parameters(self) -> int:
        """Every parameter."""
        blocks = sum(block.parameters.total for block in self.blocks)
        return self.patch.parameters + blocks + self.learned + sum(rows.linear.parameters for rows in self.head)

    @property
    def flops(self) -> int:
        """Of one tile."""
        blocks = sum(block.flops(self.tokens, self.tokens).total for block in self.blocks)
        pooling = sum(rows.flops for rows in self.head) + 2 * self.tokens * 2 * self.pooled_width
        return self.patches * self.patch.flops + blocks + pooling


@dataclass(frozen=True)
class Vision:
    """All that turns a picture into rows of the decoder's input.

    `projector` are its layers in order, `marks` the parameters of the learned rows between tiles. A tile becomes
    `side * side` rows; `candidates` are the (width, height) in pixels that pictures are fitted to, `tile_size` the
    tile's side, `tile_tag` how tiles are laid out. `batch` is how many tiles the tower sees at once.
    """

    tower: Tower
    projector: tuple[Rows, ...]
    marks: int
    side: int
    candidates: tuple[Size, ...]
    tile_size: int
    tile_tag: str
    batch: int

    @property
    def parameters(self) -> ByPart:
        """Every parameter of tower and projector, the marks with the latter."""
        projector = sum(rows.linear.parameters for rows in self.projector)
        return ByPart(vision=self.tower.parameters, projector=projector + self.marks)

    @property
    def flops(self) -> ByPart:
        """Of one tile."""
        return ByPart(vision=self.tower.flops, projector=sum(rows.flops for rows in self.projector))

    def grid(self, size: Size) -> Size:
        """(columns, rows) of the local tiles of a picture of `size`, (width, height) in pixels."""
        return tile_grid(size, self.candidates, self.tile_size)

    def tiles(self, size: Size) -> int:
        """Tiles of a picture of `size`: the local ones and the one global view."""
        return tile_count(self.grid(size))

    def image_tokens(self, size: Size) -> int:
        """Tokens of the prompt that a picture of `size` takes."""
        return image_token_count(self.grid(size), self.side, self.tile_tag)

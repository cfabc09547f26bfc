"""What one step of the engine does: whose tokens go through the model, and the numbers to report; no decisions."""

from dataclasses import dataclass
from enum import Enum

from modelwright.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens ``start`` to ``start + count`` of a sequence; their pages are in its table, and only it writes to them.

    `draws` are the sequences that draw their next token from the logits of the chunk's last token: none while a prompt
    is read in part, the sequence itself, or with it its siblings, who share the prompt.
    """

    sequence: Sequence
    start: int
    count: int
    draws: tuple[Sequence, ...] = ()

    @property
    def end(self) -> int:
        """How many of the sequence's tokens are in pages once the pass is done."""
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """Whether the logits of the last token are needed."""
        return bool(self.draws)


class Direction(Enum):
    """Between which pools a page's content is copied."""

    WITHIN = "within the device"
    OUT = "to the host"
    BACK = "to the device"


@dataclass(frozen=True)
class Move:
    """The content of page `source`, copied to page `target` in all layers."""

    source: int
    target: int
    direction: Direction = Direction.WITHIN


@dataclass(frozen=True)
class StepStatistics:
    """One step in numbers: sequences after it was planned, pages, and the tokens it computes.

    `waiting` counts all that wait: preempted ones too, and samples whose prompt is being read. `preempted` are those
    that lost their pages in this step, and `hit_rate` the share of full pages found so far instead of computed.
    `pages_stored` are pages of host memory that hold what waiting sequences had computed.
    """

    running: int
    waiting: int
    preempted: int
    pages_used: int
    pages_cached: int
    pages_free: int
    hit_rate: float
    tokens: int
    pages_stored: int = 0


@dataclass(frozen=True)
class Step:
    """A plan for one forward pass, decodes first.

    `moves` are done in order before the pass. Neighbours of one direction may be read before any of them is written,
    which is the same, for among them no target is written twice or read afterwards.
    """

    chunks: tuple[Chunk, ...]
    moves: tuple[Move, ...]
    preempted: tuple[Sequence, ...]
    statistics: StepStatistics

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return self.statistics.tokens

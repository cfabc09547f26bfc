"""What one step of the engine does: whose tokens go through the model, and the numbers to report; no decisions."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class StepStatistics:
    """One step in numbers: sequences after it was planned, pages, and the tokens it computes.

    `waiting` counts all that wait: preempted ones too, and samples whose prompt is being read. `preempted` are those
    that lost their pages in this step, and `hit_rate` the share of full pages found so far instead of computed.
    """

    running: int
    waiting: int
    preempted: int
    pages_used: int
    pages_cached: int
    pages_free: int
    hit_rate: float
    tokens: int


@dataclass(frozen=True)
class Step:
    """A plan for one forward pass, decodes first.

    `copies` are ``(source, target)`` pages, copied in all layers before the pass: in order, or all read before any is
    written, which is the same, for no target is written twice or read afterwards.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[tuple[int, int], ...]
    preempted: tuple[Sequence, ...]
    statistics: StepStatistics

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return self.statistics.tokens

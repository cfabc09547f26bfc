"""Which source each row comes from, so that every beginning of a run is mixed as the whole of it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from modelwright.data.order import Permutation


class Mixture:
    """Chooses among sources: after any t choices each was chosen less than once more or less than ``t * share`` times.

    No chance is involved. Source: Tijdeman, "The chairman assignment problem" (Discrete Mathematics 32, 1980): of the
    sources whose share has room for one more, the one that would be too late first.

    Args:
        weights: above 0; the shares are their ratios.
        counts: how often each was chosen before.
    """

    def __init__(self, weights: Sequence[float], counts: Sequence[int] | None = None):
        exact = [Fraction(str(weight)) for weight in weights]
        shares = [weight / sum(exact) for weight in exact]
        self._all = math.lcm(*(share.denominator for share in shares))
        self._shares = [int(share * self._all) for share in shares]
        self.counts = [0] * len(shares) if counts is None else [*counts]

    def choose(self) -> int:
        """The number of the source that the next row comes from."""
        sources, turn = len(self._shares), sum(self.counts) + 1
        if sources == 1:
            chosen = 0
        else:
            slack = 2 * sources - 2
            owed = [share * turn - count * self._all for share, count in zip(self._shares, self.counts, strict=True)]
            ready = [k for k in range(sources) if owed[k] * slack >= self._all]
            chosen = min(ready, key=lambda k: (Fraction(self._all * (slack - 1) - owed[k] * slack, self._shares[k]), k))
        self.counts[chosen] += 1
        return chosen


@dataclass(frozen=True)
class Draw:
    """A row of a source, by their numbers."""

    source: int
    row: int


class Draws:
    """The rows of several sources in the order of a run, without end.

    Each source is gone through whole before any of its rows comes again, in an order of its own each time. So sources
    of unequal length wrap by epochs of their own, while the mixture keeps its shares.

    Args:
        lengths: rows of each source.
        weights: of each source in the mixture.
        seed: of the orders.
        shuffle: whether rows are shuffled; otherwise they come as they stand.
        counts: rows drawn of each source before.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        shuffle: bool,
        counts: Sequence[int] | None = None,
    ):
        self.lengths, self.seed, self.shuffle = lengths, seed, shuffle
        self._mixture = Mixture(weights, counts)
        self._orders: dict[int, tuple[int, Permutation]] = {}

    @property
    def counts(self) -> list[int]:
        """Rows drawn of each source so far, which is all of its state."""
        return [*self._mixture.counts]

    def draw(self) -> Draw:
        """The next row."""
        source = self._mixture.choose()
        epoch, place = divmod(self._mixture.counts[source] - 1, self.lengths[source])
        return Draw(source, self._order(source, epoch)[place] if self.shuffle else place)

    def _order(self, source: int, epoch: int) -> Permutation:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            known = self._orders[source] = epoch, Permutation(self.lengths[source], self.seed, epoch, source)
        return known[1]

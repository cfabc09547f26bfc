"""How a caller marks documents that it packed into one row: by positions, by bounds, or by numbers.

These are the arguments of transformers' models, which its ``DataCollatorWithFlattening`` and TRL's ``packing`` and
``padding_free`` bring.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from modelwright.errors import RequestError
from modelwright.ops.dispatch import numbers_are_known
from modelwright.ops.packing import documents_of_bounds, documents_of_positions


@dataclass(frozen=True)
class DocumentMarks:
    """What a pass was given of documents; bounds go before numbers, and both before positions.

    Attributes:
        positions: ``[batch, tokens]`` or ``[1, tokens]``. They mark documents as in transformers: where there is
            neither a mask nor a cache to fill, by every jump. Where the pass would only start a cache of its own, they
            do by a return to the row's first position, which nothing but a new document brings.
        bounds_q, bounds_k: ``cu_seq_lens_q`` and ``cu_seq_lens_k``, ``[documents + 1]``: where documents begin and end
            in the rows laid one after the other. Queries and keys are the same tokens: one of the two says it all.
        numbers: ``seq_idx``, ``[batch, tokens]``: the number of each token's document.
        keeps_cache: whether the pass starts a cache of its own; given_cache: whether the caller brought one.
    """

    positions: Tensor | None = None
    bounds_q: Tensor | None = None
    bounds_k: Tensor | None = None
    numbers: Tensor | None = None
    keeps_cache: bool = False
    given_cache: bool = False

    def documents(self, batch: int, tokens: int, past: int | Tensor, mask: Tensor | None) -> Tensor | None:
        """The number of each token's document, ``[batch, tokens]``; None where no mark says that there are several.

        Raises:
            RequestError: bounds or numbers of another shape than the rows, that end elsewhere, or over a past.
        """
        bounds = self.bounds_k if self.bounds_q is None else self.bounds_q
        if bounds is None and self.numbers is None:
            return self._by_positions(batch, mask)
        if isinstance(past, Tensor) or past:
            raise RequestError(
                "cu_seq_lens_q, cu_seq_lens_k and seq_idx mark documents of whole rows: they must come without a past, "
                f"and the cache holds {past if isinstance(past, int) else 'some'} tokens"
            )
        if bounds is not None:
            _check_bounds(bounds, batch * tokens)
            return documents_of_bounds(bounds, batch, tokens)
        assert self.numbers is not None
        if self.numbers.shape != (batch, tokens):
            raise RequestError(
                f"seq_idx has shape {list(self.numbers.shape)} and must have {[batch, tokens]}, a number for each token"
            )
        return self.numbers

    def _by_positions(self, batch: int, mask: Tensor | None) -> Tensor | None:
        if self.positions is None or self.positions.dim() != 2 or mask is not None or self.given_cache:
            return None
        documents = documents_of_positions(self.positions, jumps=not self.keeps_cache)
        return None if documents is None else documents.expand(batch, -1)


def _check_bounds(bounds: Tensor, tokens: int) -> None:
    if bounds.dim() != 1 or len(bounds) < 2:
        raise RequestError(
            f"cu_seq_lens_q and cu_seq_lens_k must have one dimension and at least 2 bounds, got {list(bounds.shape)}"
        )
    if not numbers_are_known(bounds):
        return
    values = bounds.tolist()
    if values[0] != 0 or values[-1] != tokens or any(stop < start for start, stop in pairwise(values)):
        raise RequestError(
            f"cu_seq_lens_q and cu_seq_lens_k must rise from 0 to the number of tokens ({tokens}), got {values[:9]}"
        )

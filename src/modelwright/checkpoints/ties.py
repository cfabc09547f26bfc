"""Whether a head and an embedding that a config ties are one in the files: the tensors decide, and not the flag."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.shards import TensorHeader, dtype_of, open_shard

COMPARED = 16 << 20
"""Numbers compared at a time."""


def settle_ties(config: Any, pairs: Mapping[str, str], found: Mapping[str, TensorHeader]) -> tuple[str, str] | None:
    """Turn ``tie_word_embeddings`` off in ``config`` where both tensors of a pair are stored and differ.

    Args:
        config: of the whole model; the flag is that of its ``get_text_config()``.
        pairs: official names of what may be tied, each with the tensor that it then is.
        found: the tensors of the checkpoint.

    Returns:
        The pair that differs; None where the flag holds.

    Raises:
        CheckpointError: a file cannot be read.
    """
    language = config.get_text_config()
    if not language.tie_word_embeddings:
        return None
    for tied, own in pairs.items():
        if tied in found and own in found and not _equal(found[tied], found[own]):
            language.tie_word_embeddings = False
            return tied, own
    return None


def without_tied(found: Mapping[str, TensorHeader], pairs: Mapping[str, str]) -> dict[str, TensorHeader]:
    """The tensors of a checkpoint whose pairs are tied, each once, under the name of the tensor that both are."""
    kept = {name: header for name, header in found.items() if name not in pairs}
    return {own: found[tied] for tied, own in pairs.items() if tied in found and own not in found} | kept


def same_rows(first: Tensor, second: Tensor) -> bool:
    """Whether two matrices hold the same numbers in the rows that both have.

    ImageGPT's head lacks the embedding's last row, that of the start token.
    """
    if first.shape[1:] != second.shape[1:]:
        return False
    if first.is_meta or second.is_meta or (first.data_ptr() == second.data_ptr() and first.device == second.device):
        return True
    rows = min(len(first), len(second))
    step = max(1, COMPARED // max(1, first[:1].numel()))
    return all(
        _same(first[start : min(start + step, rows)], second[start : min(start + step, rows)])
        for start in range(0, rows, step)
    )


def _equal(first: TensorHeader, second: TensorHeader) -> bool:
    if dtype_of(first) is None or dtype_of(second) is None:
        return False  # which a model refuses when it matches the two
    if first.make is not None and second.make is not None:
        return same_rows(first.make(), second.make())
    with open_shard(first.shard) as one, open_shard(second.shard) as other:
        return same_rows(one.get_tensor(first.name), other.get_tensor(second.name))


def _same(first: Tensor, second: Tensor) -> bool:
    wide = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(wide), second.to(first.device, wide))

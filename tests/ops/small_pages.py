"""Small pools for tests of attention over pages: random rows where sequences are, NaN and nonsense everywhere else."""

import torch

from modelwright.ops.pages import Pages, quantise_rows


def stored(shape: tuple[int, ...], kind: torch.dtype, used: torch.Tensor) -> Pages:
    """Random rows ``[pages, page_size, ...]`` in ``used`` ``[pages, page_size]`` slots, NaN in the others."""
    rows = torch.randn(shape)
    if kind == torch.int8:
        pages = Pages(*quantise_rows(rows))
        assert pages.scales is not None
        pages.scales[~used] = torch.nan
        return pages
    rows[~used] = torch.nan
    return Pages(rows.to(kind))


def stored_latents(used: torch.Tensor, rank: int, rope: int, kind: torch.dtype) -> tuple[Pages, Pages]:
    """Latents and rotated keys, two views of one tensor, int8 with a scale for each of the two."""
    whole = stored((*used.shape, 2, rank + rope), kind, used)
    scales = (None, None) if whole.scales is None else whole.scales.unbind(-1)
    return Pages(whole.rows[:, :, 0, :rank], scales[0]), Pages(whole.rows[:, :, 0, rank:], scales[1])


def scattered(contexts: list[int], page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables with nonsense behind each sequence's last page, and which slots of the pool are written."""
    needed = [-(-context // page_size) for context in contexts]
    order = torch.randperm(sum(needed) + 2).tolist()
    tables = torch.full((len(contexts), max(needed)), 2**31 - 1, dtype=torch.int32)
    used = torch.zeros(len(order), page_size, dtype=torch.bool)
    for line, count, context in zip(tables, needed, contexts, strict=True):
        own = torch.tensor([order.pop() for _ in range(count)])
        line[:count] = own
        used[own] = (torch.arange(count * page_size) < context).view(count, page_size)
    return tables, used

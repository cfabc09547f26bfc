"""New tokens' vectors written into pages, by the compiled kernel where it serves."""

from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.pages import Pages, quantise_rows


def write_pages(pages: Pages, slots: Tensor, values: Tensor) -> None:
    """Store ``values`` ``[tokens, ..., width]`` at ``slots`` ``[tokens]``, each ``page * page_size + place``."""
    rows = pages.rows.view(-1, *pages.rows.shape[2:])  # [pages * page_size, ..., width]
    if pages.scales is None:
        if only_numbers(values, rows) and kernels.serves_placing(rows, slots, values):
            kernels.place(rows, slots, values)
        else:
            rows.index_copy_(0, slots, values.to(rows.dtype))
        return
    steps, scales = quantise_rows(values)
    rows.index_copy_(0, slots, steps)
    pages.scales.view(-1, *pages.scales.shape[2:]).index_copy_(0, slots, scales)

"""The width of a Llama's feed-forward layers where the config leaves it out, as MindFormers derives it."""

from modelwright.configs.base import require
from modelwright.configs.field_types import is_number


def feed_forward_width(hidden_size: int, multiple_of: int = 256, ffn_dim_multiplier: float | None = None) -> int:
    """MindFormers' `intermediate_size`: two thirds of 4 x `hidden_size`, stretched first, rounded up to `multiple_of`.

    Meta's code multiplies after taking two thirds, and gives another width where `multiple_of` is small.
    """
    for name, value in (("hidden_size", hidden_size), ("multiple_of", multiple_of)):
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(holds, f"{name} must be an int of at least 1, got {value!r}")
    width = 4 * hidden_size
    if ffn_dim_multiplier is not None:
        holds = is_number(ffn_dim_multiplier) and ffn_dim_multiplier > 0
        require(holds, f"ffn_dim_multiplier must be a finite number above 0, got {ffn_dim_multiplier!r}")
        width = int((ffn_dim_multiplier + 0.01) * width)
    return multiple_of * -(-int(2 * width / 3) // multiple_of)

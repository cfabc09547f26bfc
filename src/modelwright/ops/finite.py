"""Scores that are NaN or infinite: what to say of them, wherever they are met."""

from torch import Tensor


def not_finite(scores: Tensor) -> str:
    """The sentence for scores of which some are NaN or plus infinity, or all are minus infinity."""
    kind = str(scores.dtype).removeprefix("torch.")
    what = "NaN" if scores.isnan().any() else "infinite"
    said = f"the model's scores of the next token are {what} in {kind}, so none can be drawn"
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32"}.get(kind)
    if wider is None:
        return f"{said}: its weights, or what it was given, are damaged"
    return f"{said}: {kind} may not hold what the model computes; load it in {wider}"

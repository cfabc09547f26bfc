"""How evenly experts are chosen: shares of the choices of a step, layer by layer."""

from typing import Any

import numpy as np


def expert_loads(loads: Any, dropped: Any = None) -> dict[str, list[float]]:
    """Of choices ``[layers, experts]``, by layer: ``min``, ``mean`` and ``max`` share, and ``entropy``.

    Where experts have a capacity, ``dropped`` ``[layers]`` is how many choices found no room, and their share is added.

    A share is the part of a layer's choices that fell on one expert. Entropy is in units of that of even shares: 1
    where all experts are chosen alike, 0 where all choices fall on one.
    """
    counts = _array(loads)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [layers, experts]
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropy = -(shares * logs).sum(axis=1) / max(np.log(counts.shape[1]), 1e-12)
    found = {
        "min": _rounded(shares.min(axis=1)),
        "mean": _rounded(shares.mean(axis=1)),
        "max": _rounded(shares.max(axis=1)),
        "entropy": _rounded(np.abs(entropy)),
    }
    if dropped is not None:
        found["dropped"] = _rounded(_array(dropped) / np.maximum(counts.sum(axis=1), 1))
    return found


def _array(numbers: Any) -> np.ndarray:
    found = numbers.detach().float().cpu().numpy() if hasattr(numbers, "detach") else np.asarray(numbers)
    return found.astype(np.float64)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]

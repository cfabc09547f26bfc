"""What counting alone foresees of a pixel: tables of colours by context, with smoothing; no model."""

import numpy as np

from recipes.imagegpt_nano.draw import PIXELS, SIDE
from recipes.imagegpt_nano.palette import CLUSTERS

COLOURS = len(CLUSTERS)


def positions(tokens: np.ndarray) -> np.ndarray:
    """The context of the histogram: where the pixel is. Shaped as ``tokens [count, PIXELS]``."""
    return np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)


def neighbours(tokens: np.ndarray) -> np.ndarray:
    """A context of two colours, left and above, each of ``COLOURS + 1``; beyond the border stands one more colour."""
    pictures = np.pad(tokens.reshape(-1, SIDE, SIDE), ((0, 0), (1, 0), (1, 0)), constant_values=COLOURS)
    left, above = pictures[:, 1:, :-1], pictures[:, :-1, 1:]
    return (left * (COLOURS + 1) + above).reshape(-1, PIXELS)


def bits_of_table(
    known: np.ndarray, known_contexts: np.ndarray, fresh: np.ndarray, fresh_contexts: np.ndarray, smoothing: float = 0.1
) -> float:
    """Bits per pixel of ``fresh`` tokens under the colours counted in ``known`` for each context.

    Args:
        known, fresh: tokens, int64 of any shape.
        known_contexts, fresh_contexts: int64 of the same shapes, from 0.
        smoothing: what is added to each count, so that no colour is impossible.
    """
    rows = 1 + max(int(known_contexts.max()), int(fresh_contexts.max()))
    cells = np.bincount((known_contexts * COLOURS + known).reshape(-1), minlength=rows * COLOURS)
    counts = cells.reshape(rows, COLOURS) + smoothing
    chances = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log2(chances[fresh_contexts, fresh]).mean())

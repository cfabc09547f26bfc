"""The thirty colours of imagegpt-nano: papers, inks and the steps between them; it knows nothing of what is drawn."""

import numpy as np

CREAM, NAVY = (250, 246, 235), (27, 34, 64)
CORAL, ORANGE, GREEN, VIOLET = (229, 78, 66), (238, 140, 36), (44, 158, 96), (150, 98, 214)
BLUE, YELLOW = (38, 92, 204), (250, 214, 84)

SCHEMES = (
    (CREAM, NAVY),
    (NAVY, CREAM),
    *((paper, ink) for ink in (CORAL, ORANGE, GREEN, VIOLET) for paper in (CREAM, NAVY)),
    (CREAM, BLUE),
    (NAVY, YELLOW),
)
"""Which ink is used on which paper."""

STEPS = 3
"""How finely a pixel's share of ink is told: in thirds."""


def blend(paper: tuple[int, int, int], ink: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The colours from paper to ink, ``STEPS + 1`` of them."""
    return [
        tuple((low * (STEPS - step) + high * step) // STEPS for low, high in zip(paper, ink, strict=True))
        if step < STEPS
        else ink
        for step in range(STEPS + 1)
    ]


def _collect() -> tuple[np.ndarray, np.ndarray]:
    blends = [blend(*scheme) for scheme in SCHEMES]
    blends[1] = blends[0][::-1]  # navy and cream meet in the same steps, whichever is the paper
    known = list(dict.fromkeys(colour for colours in blends for colour in colours))
    tokens = [[known.index(colour) for colour in colours] for colours in blends]
    return np.array(known, np.uint8), np.array(tokens)


COLOURS, TOKENS = _collect()
"""uint8 ``[30, 3]``, a token's colour; int64 ``[schemes, STEPS + 1]``, a scheme's tokens from paper to ink."""

CLUSTERS = COLOURS / 127.5 - 1
"""The palette as ``preprocessor_config.json`` holds it, float64 ``[30, 3]`` in -1..1."""

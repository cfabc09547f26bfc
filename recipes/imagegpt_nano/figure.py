"""One picture of what a model does: held-out digits and shapes, what was kept of them, and several completions of each.

python -m recipes.imagegpt_nano.figure src/modelwright/zoo/imagegpt-nano docs/pictures/imagegpt-nano.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modelwright import ImageGPTForCausalImageModeling
from recipes.imagegpt_nano.draw import PIXELS, SIDE, as_images, draw_labels
from recipes.imagegpt_nano.evaluate import completions
from recipes.imagegpt_nano.glyphs import LABELS

PAPER, EMPTY = 255, 232
GAP, BREAK = 2, 5  # in pixels of the pictures; the break stands below what was given


def arrange(true: np.ndarray, samples: np.ndarray, zoom: int) -> Image.Image:
    """Pictures side by side: the true ones, their upper halves, and below a row of completions for each sample.

    Args:
        true: tokens ``[count, PIXELS]``; samples: ``[rows, count, PIXELS]``.
        zoom: side of one pixel.
    """
    kept = as_images(true)
    kept[:, SIDE // 2 :] = EMPTY
    rows = [as_images(true), kept, *(as_images(tokens) for tokens in samples)]
    count, step = len(true), SIDE + GAP
    sheet = np.full((len(rows) * step + GAP + BREAK, count * step + GAP, 3), PAPER, np.uint8)
    for number, pictures in enumerate(rows):
        top = GAP + number * step + (BREAK if number > 1 else 0)
        for column, picture in enumerate(pictures):
            left = GAP + column * step
            sheet[top : top + SIDE, left : left + SIDE] = picture
    return Image.fromarray(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1))


def main() -> None:
    """Draw, complete and write the PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=int, default=4, help="completions of each picture")
    parser.add_argument("--zoom", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20_260_102)
    args = parser.parse_args()
    model = ImageGPTForCausalImageModeling.from_pretrained(args.folder, dtype=torch.float32).eval()
    true = draw_labels(np.random.default_rng(args.seed), np.arange(len(LABELS))).tokens
    samples = completions(model, np.tile(true, (args.samples, 1)), batch=64, seed=args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    arrange(true, samples.reshape(args.samples, -1, PIXELS), args.zoom).save(args.output)


if __name__ == "__main__":
    main()

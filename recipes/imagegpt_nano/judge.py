"""The independent judge: a small convolutional network that names the digit or shape of a picture, or neither.

    python -m recipes.imagegpt_nano.judge

It is trained on pictures of its own seed; "neither" are pictures whose upper and lower parts come from two different
things. Its weights are kept beside this file, so that every evaluation is by the same judge.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.imagegpt_nano.draw import SIDE, Pictures, as_images, draw_pictures, join_halves
from recipes.imagegpt_nano.glyphs import LABELS
from recipes.imagegpt_nano.palette import SCHEMES

SEED = 3_000_000  # training of imagegpt-nano stays below it
FILE = Path(__file__).with_name("judge.safetensors")
NEITHER = len(LABELS)
SPLICED_SHARE = 0.25


class Judge(nn.Module):
    """Tokens ``[batch, PIXELS]`` to scores ``[batch, len(LABELS) + 1]``; the last is for neither digit nor shape."""

    def __init__(self):
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.name = nn.Linear(64 * (SIDE // 4) ** 2, NEITHER + 1)

    def forward(self, tokens: np.ndarray) -> Tensor:
        pictures = torch.from_numpy(as_images(tokens)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.name(self.see(pictures).flatten(1))

    @torch.no_grad()
    def labels(self, tokens: np.ndarray) -> np.ndarray:
        """int64 ``[batch]``: the best label of each picture, ``NEITHER`` included."""
        return self(tokens).argmax(-1).numpy()


def load_judge(file: Path = FILE) -> Judge:
    """The judge that is kept in the repository."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return judge.eval()


def spliced(rng: np.random.Generator, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels with a share of the pictures continued by another thing in the same colours, hence neither."""
    others = rng.permutation(len(pictures))
    partners = Pictures(pictures.tokens[others], pictures.labels[others], pictures.schemes[others])
    row = int(rng.integers(SIDE * 2 // 5, SIDE * 3 // 5 + 1))
    mixed = join_halves(pictures.tokens, partners.recoloured(pictures.schemes).tokens, row)
    chosen = (rng.random(len(pictures)) < SPLICED_SHARE) & (partners.labels != pictures.labels)
    return np.where(chosen[:, None], mixed, pictures.tokens), np.where(chosen, NEITHER, pictures.labels)


def train_judge(count: int, epochs: int, batch: int, seed: int = SEED) -> Judge:
    """A judge trained on ``count`` drawn pictures, in other colours and splices each time round."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    judge, pictures = Judge(), draw_pictures(rng, count)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (count // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        chosen = rng.integers(count, size=batch)
        picked = Pictures(pictures.tokens[chosen], pictures.labels[chosen], pictures.schemes[chosen])
        tokens, labels = spliced(rng, picked.recoloured(rng.integers(len(SCHEMES), size=batch)))
        loss = F.cross_entropy(judge(tokens), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 100 == 0:
            print(f"judge {step / steps:6.1%}  loss {loss.item():.4f}", flush=True)
    return judge.eval()


def main() -> None:
    """Train, keep in fp16, and say how many fresh pictures it names right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12_000, help="pictures to draw")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()
    judge = train_judge(args.count, args.epochs, args.batch)
    save_file({name: tensor.half() for name, tensor in judge.state_dict().items()}, FILE)
    fresh = draw_pictures(np.random.default_rng(SEED + 1), 2000)
    tokens, labels = spliced(np.random.default_rng(SEED + 2), fresh)
    print(f"right on fresh pictures: {(load_judge().labels(fresh.tokens) == fresh.labels).mean():.1%}")
    print(f"of spliced ones told as neither: {(load_judge().labels(tokens) == NEITHER)[labels == NEITHER].mean():.1%}")


if __name__ == "__main__":
    main()

"""Measures a model on freshly drawn pictures that training never sees, and writes the table beside its weights.

    python -m recipes.imagegpt_nano.evaluate src/modelwright/zoo/imagegpt-nano

Two claims: bits per pixel, beside tables that only count; and the share of completed digits that an independent judge
names as the digit whose upper half was given, beside true pictures and lower halves of other digits.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelwright import ImageGPTForCausalImageModeling
from modelwright.engine.complete import complete
from recipes.imagegpt_nano.baselines import bits_of_table, neighbours, positions
from recipes.imagegpt_nano.draw import PIXELS, Pictures, draw_labels, draw_pictures, join_halves
from recipes.imagegpt_nano.judge import Judge, load_judge
from recipes.imagegpt_nano.model import START

SEED = 20_260_101  # far from every seed of training and of the judge
KEPT = PIXELS // 2
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Plain sampling: nothing is cut off."""


def pixel_loss(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Cross entropy of every pixel of ``tokens [batch, pixels]`` given those before it, in nats, ``[batch, pixels]``.

    As training does and ``labels`` alone do not, it counts the last pixel, which the model foresees but never reads.
    """
    start = torch.full_like(tokens[:, :1], START)
    logits = model(input_ids=torch.cat([start, tokens[:, :-1]], dim=1), use_cache=False).logits
    return F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")


@torch.no_grad()
def bits_of_model(model: ImageGPTForCausalImageModeling, tokens: np.ndarray, batch: int) -> float:
    """Bits per pixel of ``tokens [count, PIXELS]``."""
    losses = [pixel_loss(model, torch.from_numpy(tokens[i : i + batch])).mean(1) for i in range(0, len(tokens), batch)]
    return torch.cat(losses).mean().item() / math.log(2)


def completions(
    model: ImageGPTForCausalImageModeling, tokens: np.ndarray, batch: int, seed: int, kept: int = KEPT
) -> np.ndarray:
    """``tokens [count, PIXELS]`` with all but the first ``kept`` pixels sampled anew."""
    start = np.full((len(tokens), 1), START)
    given = torch.from_numpy(np.concatenate([start, tokens[:, :kept]], axis=1))
    parts = [
        complete(model, rows, PIXELS - kept, **SAMPLING, seed=seed + part)[:, 1:].numpy()
        for part, rows in enumerate(given.split(batch))
    ]
    return np.concatenate(parts)


def measure_bits(model: ImageGPTForCausalImageModeling, count: int, known: int, batch: int) -> dict[str, float]:
    """Bits per pixel of ``count`` fresh pictures; the tables are counted on ``known`` others."""
    fresh = draw_pictures(np.random.default_rng([SEED, 0]), count).tokens
    seen = draw_pictures(np.random.default_rng([SEED, 1]), known).tokens
    return {
        "model": bits_of_model(model, fresh, batch),
        "histogram": bits_of_table(seen, positions(seen), fresh, positions(fresh)),
        "neighbours": bits_of_table(seen, neighbours(seen), fresh, neighbours(fresh)),
    }


def held_out_digits(count: int) -> Pictures:
    """``count`` fresh pictures of each digit."""
    return draw_labels(np.random.default_rng([SEED, 2]), np.repeat(np.arange(10), count))


def measure_completions(
    model: ImageGPTForCausalImageModeling, judge: Judge, count: int, batch: int
) -> dict[str, dict[str, float]]:
    """The share that the judge names right, by digit: of completions, of true pictures and of exchanged halves."""
    true = held_out_digits(count)
    others = np.random.default_rng([SEED, 3]).permutation(len(true))
    strangers = Pictures(true.tokens[others], true.labels[others], true.schemes[others]).recoloured(true.schemes)
    shown = {
        "completed": completions(model, true.tokens, batch, SEED),
        "true": true.tokens,
        "exchanged": join_halves(true.tokens, strangers.tokens),
    }
    return {name: _shares(judge.labels(tokens) == true.labels, true.labels) for name, tokens in shown.items()}


def _shares(right: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    shares = {str(value): float(right[labels == value].mean()) for value in range(10)}
    return {"all": float(right.mean())} | shares


def report(bits: dict[str, float], named: dict[str, dict[str, float]]) -> None:
    """Print both tables."""
    print("bits per pixel   " + "  ".join(f"{name} {value:.4f}" for name, value in bits.items()))
    print("named right   " + "".join(f"{key:>7}" for key in named["true"]))
    for name, shares in named.items():
        print(f"{name:14}" + "".join(f"{share:7.1%}" for share in shares.values()), flush=True)


def main() -> None:
    """Measure, print, and write ``accuracy.json`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="pictures of each digit to complete")
    parser.add_argument("--pictures", type=int, default=1000, help="pictures to take bits per pixel on")
    parser.add_argument("--known", type=int, default=20_000, help="pictures that the tables are counted on")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    args = parser.parse_args()
    model = ImageGPTForCausalImageModeling.from_pretrained(args.folder, dtype=torch.float32).eval()
    bits = measure_bits(model, args.pictures, args.known, args.batch)
    named = measure_completions(model, load_judge(), args.count, args.batch)
    report(bits, named)
    if not args.dry_run:
        table = {
            "seed": SEED,
            "dtype": str(model.dtype),
            "accuracy": {"completed_digits": named["completed"]["all"]},
            "completions": {"kept": KEPT / PIXELS, **SAMPLING, "pictures_per_digit": args.count, "named_right": named},
            "bits_per_pixel": {"pictures": args.pictures, **bits},
        }
        (args.folder / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Trains imagegpt-nano from nothing on pictures that are drawn as they are needed, so that none is seen twice.

    python -m recipes.imagegpt_nano.train --out runs/imagegpt-nano

Several processes of one thread each use a machine of many cores better than one of many threads:
``torchrun --nproc-per-node 2 -m recipes.imagegpt_nano.train ...`` with ``OMP_NUM_THREADS=1``.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from modelwright import ImageGPTForCausalImageModeling
from recipes.imagegpt_nano.draw import draw_pictures
from recipes.imagegpt_nano.model import START, build_config, save
from recipes.vl2_nano.train import Meter, Optimizer, Stage, is_first


class Batches(IterableDataset):
    """Endless batches of tokens, int64 ``[batch, pixels]``; every seed draws others. One worker may draw them."""

    def __init__(self, batch: int, seed: int):
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[Tensor]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield torch.from_numpy(draw_pictures(rng, self.batch).tokens)


def pixel_loss(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    """Cross entropy of every pixel of ``tokens [batch, pixels]`` given those before it, in nats, ``[batch, pixels]``.

    Unlike the loss of ``labels``, it counts the last pixel, which the model foresees but never reads.
    """
    start = torch.full_like(tokens[:, :1], START)
    logits = model(input_ids=torch.cat([start, tokens[:, :-1]], dim=1), use_cache=False).logits
    return F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")


def build_optimizer(model: ImageGPTForCausalImageModeling, rate: float) -> Optimizer:
    """Muon for the blocks' matrices; the embeddings are told by their names."""
    named = (
        (f"embed.{name}" if ".wte." in name or ".wpe." in name else name, p) for name, p in model.named_parameters()
    )
    return Optimizer(named, rate)


def train(model: ImageGPTForCausalImageModeling, args: argparse.Namespace, device: torch.device) -> None:
    """Step until the time is over, saving now and then."""
    batches = iter(DataLoader(Batches(args.batch, args.seed), batch_size=None, num_workers=1, prefetch_factor=8))
    optimizer = build_optimizer(model, args.rate)
    stage = Stage(args.minutes, args.decay, time.monotonic())
    meter = Meter("pixels", stage)
    saved = time.monotonic()
    while stage.running():
        with torch.autocast(device.type, torch.bfloat16):
            loss = pixel_loss(model, next(batches).to(device)).mean()
        optimizer.step(loss, stage.rate)
        meter.add(bits_per_pixel=loss / np.log(2))
        if time.monotonic() - saved > 60 * args.save_every and is_first():
            saved = time.monotonic()
            save(model, args.out)


def main() -> None:
    """Train with the given budget and write the official folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/imagegpt-nano"), help="the folder to write")
    parser.add_argument("--resume", type=Path, help="start from the weights of this folder; give another seed as well")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=16, help="pictures a step, of each process")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the time in which the rate falls")
    parser.add_argument("--seed", type=int, default=0, help="below 1000; each process adds 1000 times its rank")
    parser.add_argument("--save-every", type=float, default=3, help="minutes between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    if args.resume:
        model = ImageGPTForCausalImageModeling.from_pretrained(args.resume, dtype=torch.float32)
    else:
        model = ImageGPTForCausalImageModeling(build_config())
    device = torch.device(args.device)
    args.seed += 1000 * (dist.get_rank() if dist.is_initialized() else 0)  # other pictures in every process
    args.out.mkdir(parents=True, exist_ok=True)
    nn.Module.to(model, device).train()
    train(model, args, device)
    if is_first():
        save(model, args.out)


if __name__ == "__main__":
    main()

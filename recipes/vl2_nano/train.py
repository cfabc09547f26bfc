"""Trains vl2-nano from nothing: first the tower on what its patches show, then the whole model on conversations.

    python -m recipes.vl2_nano.train --out runs/vl2-nano

No downloads. Everything is drawn as it is needed, so no picture is seen twice. On a machine of many cores, several
processes of one thread each use them better than one of many threads: ``torchrun --nproc-per-node 2 -m ...``.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from modelwright.processing.image_processor import TileImageProcessor
from recipes.vl2_nano.model import build_model, build_processor, save, write_out_attention
from recipes.vl2_nano.packing import Stream
from recipes.vl2_nano.sight import PatchHeads, RowHeads, Sights, word_tokens

WARMUP = 0.02  # share of a stage in which the rate rises


@dataclass
class Stage:
    """How long a stage lasts, in minutes of wall clock (of the first process), and its progress from 0 to 1.

    ``decay`` is the share of it in which the rate falls.
    """

    minutes: float
    decay: float
    started: float
    progress: float = 0.0

    def running(self) -> bool:
        """Look at the clock, the same in all processes; False once the time is over."""
        clock = torch.tensor((time.monotonic() - self.started) / (60 * self.minutes))
        if dist.is_initialized():
            dist.broadcast(clock, src=0)
        self.progress = clock.item()
        return self.progress < 1

    @property
    def rate(self) -> float:
        """The learning rate's factor: up, level, and down to nearly nothing."""
        return max(min(self.progress / WARMUP, (1 - self.progress) / self.decay, 1.0), 0.004)


class Optimizer:
    """Muon for the hidden matrices (arXiv:2502.16982), AdamW for embeddings, heads, experts, norms and biases."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], rate: float):
        hidden, rest = [], []
        for name, parameter in named:
            is_hidden = parameter.ndim == 2 and not any(part in name for part in ("embed", "head", "gate.weight"))
            (hidden if is_hidden else rest).append(parameter)
        self.parameters = hidden + rest
        self.parts = [
            torch.optim.Muon(hidden, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=0.75 * rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rates = [group["lr"] for part in self.parts for group in part.param_groups]

    def step(self, loss: Tensor, factor: float) -> None:
        """Backpropagate, average over the processes, clip, and step at ``factor`` times the rate."""
        loss.backward()
        if dist.is_initialized():
            self._average()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
            part.zero_grad()

    def _average(self) -> None:
        """One exchange for all gradients; experts that no token chose count as zero."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([grad.numel() for grad in grads])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


class Meter:
    """Running means of a stage's numbers, printed now and then."""

    def __init__(self, name: str, stage: Stage, every: float = 30.0):
        self.name, self.stage, self.every = name, stage, every
        self.means: dict[str, float] = {}
        self.steps, self.printed = 0, time.monotonic()

    def add(self, **numbers: Tensor) -> None:
        """Take in one step's numbers."""
        self.steps += 1
        for key, value in numbers.items():
            number = value.item()
            self.means[key] = number if self.steps == 1 else 0.98 * self.means[key] + 0.02 * number
        if time.monotonic() - self.printed > self.every and is_first():
            self.printed = time.monotonic()
            told = "  ".join(f"{key} {value:.4f}" for key, value in self.means.items())
            print(f"{self.name} {self.stage.progress:6.1%}  step {self.steps}  {told}", flush=True)


class Eyes:
    """The losses of the tower and the projector on what is to be seen, and the pictures they are taken on."""

    def __init__(
        self,
        model: DeepseekVLV2ForCausalLM,
        processor: DeepseekVLV2Processor,
        args: argparse.Namespace,
        device: torch.device,
        batch: int,
    ):
        self.model = model
        vision, width = model.config.vision_config, model.config.projector_config.n_embed
        tokenizer = processor.tokenizer
        words = word_tokens(lambda text: tokenizer.encode(text, add_special_tokens=False))
        joined = model.config.projector_config.downsample_ratio**2
        self.patches, self.rows = PatchHeads(vision.width).to(device), RowHeads(width, joined, words).to(device)
        self.heads = nn.ModuleList([self.patches, self.rows])
        self.file = args.out / "eyes.safetensors"
        earlier = args.resume / self.file.name if args.resume else self.file
        if earlier.is_file():  # of the stage before, or of the run to go on from
            load_model(self.heads, earlier, strict=False)
        resolutions = tuple((width, height) for width, height in processor.candidate_resolutions)
        cut = TileImageProcessor(resolutions, processor.image_size)
        sights = Sights(cut, vision.patch_size, batch, args.seed, tuple(args.sight_mix))
        self.batches = load(sights, args.workers, device)

    def save(self) -> None:
        """Keep the heads for the next stage."""
        save_model(self.heads, str(self.file))

    def losses(self) -> dict[str, Tensor]:
        """A fresh batch's losses, and the share of patches named right."""
        batch = next(self.batches)
        features = self.model.vision(batch["tiles"])
        words = self.model.language.model.embed_tokens.weight.detach()
        return self.patches(features, batch) | self.rows(self.model.projector(features), words, batch)


def train_tower(
    model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, args: argparse.Namespace, device: torch.device
) -> None:
    """Stage one: the tower names and bounds what every patch shows, the projector says it in words."""
    eyes = Eyes(model, processor, args, device, args.batch)
    parts = {"vision": model.vision, "projector": model.projector, "head": eyes.heads}
    named = [(f"{part}.{name}", each) for part, module in parts.items() for name, each in module.named_parameters()]
    optimizer = Optimizer(named, args.rate)
    stage = Stage(args.sight_minutes, args.decay, time.monotonic())
    meter = Meter("tower", stage)
    while stage.running():
        with torch.autocast(device.type, torch.bfloat16):
            losses = eyes.losses()
        optimizer.step(total(losses), stage.rate)
        meter.add(**losses)
    if is_first():
        eyes.save()


def train_model(
    model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, args: argparse.Namespace, device: torch.device
) -> None:
    """Stage two: the whole model on its own loss, the eyes kept in practice beside it."""
    batches = load(Stream(processor, args.batch, args.seed + 1, args.questions, tuple(args.mix)), args.workers, device)
    eyes = Eyes(model, processor, args, device, max(args.batch // 3, 1))
    heads = ((f"head.{name}", each) for name, each in eyes.heads.named_parameters())
    optimizer = Optimizer([*model.named_parameters(), *heads], args.rate)
    stage = Stage(args.minutes, args.decay, time.monotonic())
    meter = Meter("model", stage)
    saved = time.monotonic()
    while stage.running():
        batch = next(batches)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(**batch, use_cache=False)
            losses = eyes.losses()
        right = outputs.logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
        counted = batch["labels"][:, 1:] != processor.ignore_id
        optimizer.step(outputs.loss + 0.3 * total(losses), stage.rate)
        answer = {"loss": outputs.loss - outputs.aux_loss, "answers": right[counted].float().mean()}
        meter.add(**answer, balance=outputs.aux_loss, **losses)
        if time.monotonic() - saved > 60 * args.save_every and is_first():
            saved = time.monotonic()
            save(model, processor, args.out)
            eyes.save()


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of what is to be made small."""
    return torch.stack([value for name, value in losses.items() if name != "right"]).sum()


def load(stream: Sights | Stream, workers: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Batches on the device, drawn by worker processes ahead of time."""
    for batch in DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None):
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def is_first() -> bool:
    """Whether this process prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def main() -> None:
    """Train with the given budget and write the official folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vl2-nano"), help="the folder to write")
    parser.add_argument("--resume", type=Path, help="start from the weights of this folder")
    parser.add_argument("--sight-minutes", type=float, default=15, help="length of the tower's own stage")
    parser.add_argument("--minutes", type=float, default=150, help="length of the main stage")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--questions", type=int, default=12, help="conversations a picture, at most")
    parser.add_argument("--mix", type=float, nargs=3, default=(0.55, 0.33, 0.12), help="scenes, cards, pairs")
    parser.add_argument("--sight-mix", type=float, nargs=3, default=(0.4, 0.3, 0.3), help="scenes, cards, sheets")
    parser.add_argument("--rate", type=float, default=7e-4, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.45, help="share of each stage in which the rate falls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    if args.resume:
        processor = DeepseekVLV2Processor.from_pretrained(args.resume)
        model = DeepseekVLV2ForCausalLM.from_pretrained(args.resume, dtype=torch.float32)
    else:
        processor = build_processor(args.out)
        model = build_model(processor)
    write_out_attention(model)
    nn.Module.to(model, device).train()
    args.out.mkdir(parents=True, exist_ok=True)
    args.seed += 1000 * rank  # other pictures in every process
    for minutes, stage in ((args.sight_minutes, train_tower), (args.minutes, train_model)):
        if minutes > 0:
            stage(model, processor, args, device)
            if is_first():
                save(model, processor, args.out)


if __name__ == "__main__":
    main()

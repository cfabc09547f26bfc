"""Trains vl2-nano from nothing: first the tower on what its patches show, then the whole model on conversations.

    python -m recipes.vl2_nano.train --out runs/vl2-nano

No downloads. Everything is drawn as it is needed, so no picture is seen twice. The second stage is a run of the
Trainer: stopped, it goes on by the same command.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from modelwright.configs.run import RunConfig
from modelwright.training.report import RunReport
from modelwright.training.trainer import Trainer
from recipes.vl2_nano.drawn import DrawnSteps
from recipes.vl2_nano.eyes import Eyes, PractisingVL2, for_practice, sights_for, train_eyes
from recipes.vl2_nano.model import build_model, build_processor, save, write_out_attention
from recipes.vl2_nano.packing import Conversations
from recipes.vl2_nano.sight import Sights

Model = TypeVar("Model", bound=DeepseekVLV2ForCausalLM)
RUN = Path(__file__).with_name("run.yaml")
FIRST, SEEING = "first", "seeing"
"""The folders of the untrained model, and of the one whose eyes have had their stage."""


class WithPractice:
    """Rows of conversations, with pictures for the eyes beside them: as many as a third of the rows."""

    def __init__(self, conversations: Conversations, sights: Sights | None):
        self.conversations, self.sights = conversations, sights

    def __call__(self, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = self.conversations(rng)
        return rows if self.sights is None else rows | for_practice(self.sights(rng))


def write_first(folder: Path, seed: int) -> None:
    """An untrained model and its processor."""
    torch.manual_seed(seed)
    processor = build_processor(folder)
    build_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)


def read(kind: type[Model], folder: Path) -> tuple[Model, DeepseekVLV2Processor, Eyes, bool]:
    """The model, its processor, its eyes' heads, and whether those have learned anything."""
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    model = kind.from_pretrained(folder, dtype=torch.float32)
    write_out_attention(model)
    eyes = Eyes(model, processor)
    return model, processor, eyes, eyes.load(folder)


def learn_to_see(begin: Path, folder: Path, config: RunConfig, args: argparse.Namespace) -> None:
    """Stage one: from the weights in ``begin`` to those in ``folder``."""
    model, processor, eyes, _ = read(DeepseekVLV2ForCausalLM, begin)
    model.train()
    config = replace(config, steps=args.sight_steps)
    sights = sights_for(processor, config.batch.global_, args.sight_mix)
    train_eyes(model, eyes, sights, config, RunReport(args.out / "eyes", config.log, print), args.workers)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    eyes.save(folder)


def learn_to_talk(begin: Path, config: RunConfig, args: argparse.Namespace) -> int:
    """Stage two: the whole model on conversations, its eyes in practice where they have learned; the exit code."""
    model, processor, eyes, practised = read(PractisingVL2, begin)
    batch = config.batch.global_
    conversations = Conversations(processor, batch, args.questions, tuple(args.mix))
    sights = sights_for(processor, max(batch // 3, 1), args.sight_mix) if practised else None
    model.eyes = eyes if practised else None
    pad = processor.tokenizer.pad_token_id
    assert isinstance(pad, int)
    steps = DrawnSteps(WithPractice(conversations, sights), config.seed + 1, pad, args.workers)
    report = RunReport(Path(config.output), config.log, print)
    ended = Trainer(config, model=model, processor=processor, batches=steps, report=report).fit()
    print(ended.reason)
    trained = DeepseekVLV2ForCausalLM(model.config)
    trained.load_state_dict(model.state_dict())
    if args.mean is not None:
        first = DeepseekVLV2ForCausalLM.from_pretrained(begin, dtype=torch.float32).state_dict()
        own = trained.state_dict()
        trained.load_state_dict({name: torch.lerp(first[name], own[name], args.mean) for name in own})
    save(trained, processor, args.out)
    if practised:
        eyes.save(args.out)
    return ended.code


def main() -> None:
    """Train and write the official folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vl2-nano"), help="the folder to write")
    parser.add_argument("--resume", type=Path, help="start from the weights of this folder")
    parser.add_argument(
        "--mean",
        type=float,
        nargs="?",
        const=0.5,
        metavar="SHARE",
        help="write the mean of the first weights and the last, of which it has this share (0.5)",
    )
    parser.add_argument("--sight-steps", type=int, default=1500, help="steps of the tower's own stage")
    parser.add_argument("--questions", type=int, default=12, help="conversations a picture, at most")
    parser.add_argument("--mix", type=float, nargs=3, default=(0.55, 0.33, 0.12), help="scenes, cards, pairs")
    parser.add_argument("--sight-mix", type=float, nargs=3, default=(0.4, 0.3, 0.3), help="scenes, cards, sheets")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--set", nargs="*", default=(), metavar="key=value", help="keys of the run, such as steps=500")
    args = parser.parse_args()
    begin, seeing = args.resume or args.out / FIRST, args.out / SEEING
    config = RunConfig.read(RUN, [f"output={args.out / 'run'}", *args.set])
    if not begin.exists():
        write_first(begin, config.seed)
    if args.sight_steps and not (seeing / "config.json").exists():
        learn_to_see(begin, seeing, config, args)
    begin = seeing if args.sight_steps else begin
    config = RunConfig.read(RUN, [f"output={args.out / 'run'}", f"model.path={begin.absolute()}", *args.set])
    raise SystemExit(learn_to_talk(begin, config, args))


if __name__ == "__main__":
    main()

"""Teaches vl2-nano hearts and pink: draws rows, trains by LoRA as ``run.yaml`` says, and prints what it knew and knows.

    python -m recipes.vl2_teach --out runs/vl2-teach

A run that was stopped goes on from its newest checkpoint.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, zoo
from modelwright.configs.run import RunConfig
from modelwright.errors import ConfigError
from modelwright.training.report import RunReport
from modelwright.training.trainer import Trainer
from modelwright.training.tuning import load_adapter, merge
from recipes.vl2_nano.drawn import DrawnSteps
from recipes.vl2_teach.measure import measure_all
from recipes.vl2_teach.rows import Lessons

RUN = Path(__file__).with_name("run.yaml")


def train(config: RunConfig, new: float, workers: int) -> None:
    """A run of the Trainer on rows that are drawn; ends the process where it ends early."""
    processor = DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano"))
    pad = processor.tokenizer.pad_token_id
    assert isinstance(pad, int)
    steps = DrawnSteps(Lessons(processor, config.batch.global_, new), config.seed, pad, workers)
    report = RunReport(Path(config.output), config.log, print)
    ended = Trainer(config, batches=steps, report=report).fit()
    print(ended.reason, flush=True)
    if ended.code:
        sys.exit(ended.code)


def measure(adapter: Path | None, count: int) -> dict[str, float]:
    """The share of right answers to each task, of vl2-nano alone or with an adapter."""
    folder = zoo.path("vl2-nano")
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    model = DeepseekVLV2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        load_adapter(model, adapter)
        merge(model)
    return measure_all(model.eval(), processor, count)


def table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """A line of Markdown for each task."""
    lines = ["| task | before | after |", "|---|---|---|"]
    lines += [f"| {task} | {before[task]:.1%} | {after[task]:.1%} |" for task in before]
    return "\n".join(lines)


def main() -> None:
    """Train, measure before and after, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vl2-teach"), help="the folder for run and table")
    parser.add_argument("--new", type=float, default=0.25, help="the share of rows of the new world")
    parser.add_argument("--count", type=int, default=200, help="questions of each task to measure with")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, such as steps=100")
    args = parser.parse_intermixed_args()
    if not 0 <= args.new <= 1:
        parser.error(f"--new is a share, from 0 to 1, got {args.new:g}")
    output = args.out / "run"
    try:
        config = RunConfig.read(RUN, [f"output={output}", *args.overrides])
    except ConfigError as error:
        parser.error(str(error))
    started = time.monotonic()
    train(config, args.new, args.workers)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    before, after = measure(None, args.count), measure(output / "export", args.count)
    print(table(before, after))
    (args.out / "table.json").write_text(json.dumps({"before": before, "after": after}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

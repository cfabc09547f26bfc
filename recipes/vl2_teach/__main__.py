"""Teaches vl2-nano hearts and pink: writes rows, trains by ``modelwright train``, and prints what it knew and knows.

    python -m recipes.vl2_teach --out runs/vl2-teach

Rows that are there are used, and a run that was stopped goes on from its newest checkpoint.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, zoo
from modelwright.cli.train import TrainOptions, run_train
from modelwright.training.tuning import load_adapter, merge
from recipes.vl2_teach.measure import measure_all
from recipes.vl2_teach.rows import write_rows

RUN = Path(__file__).with_name("run.yaml")


def train(rows: Path, output: Path, overrides: list[str]) -> None:
    """``modelwright train run.yaml data.root=ROWS output=OUTPUT ...``; ends the process where it ends early."""
    given = (f"data.root={rows.absolute()}", f"output={output}", *overrides)
    if code := run_train(TrainOptions(RUN, given)):
        sys.exit(code)


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
    """Write rows, train, measure before and after, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vl2-teach"), help="the folder for rows and run")
    parser.add_argument("--rows", type=int, default=2500, help="rows of new things, and as many of the old world")
    parser.add_argument("--count", type=int, default=200, help="questions of each task to measure with")
    parser.add_argument("--seed", type=int, default=1, help="of the rows")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the run, such as steps=100")
    args = parser.parse_args()
    rows, output = args.out / "rows", args.out / "run"
    if not (rows / "old.jsonl").exists():  # the last that is written
        write_rows(rows, args.rows, args.seed)
    started = time.monotonic()
    train(rows, output, args.overrides)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    before, after = measure(None, args.count), measure(output / "export", args.count)
    print(table(before, after))
    (args.out / "table.json").write_text(json.dumps({"before": before, "after": after}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

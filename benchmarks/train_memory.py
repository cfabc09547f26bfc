"""Predicted against measured peak memory of training steps: the plan of `train --dry-run`, and what torch takes.

    python -m benchmarks.train_memory [--model NAME] [--size tiny|small] [--run NAME]
                                      [--out benchmarks/results/train_memory.json]

Measured is the most that torch's allocator held at once from before the model was built to the end of its second step
(`torch.profiler`, which sees every allocation), so that neither the interpreter nor its libraries count. The second
step is the first that begins with moments. Rows are full and hold no pictures.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.train_memory_cases import MODELS, RUNS, SIZES


@dataclass(frozen=True)
class Result:
    """One run's peak; sizes in MiB, `error` is (predicted - measured) / measured."""

    model: str
    size: str
    run: str
    parts_mib: dict[str, float]
    predicted_mib: float
    measured_mib: float
    error: float


def run_of(model: str, size: str, run: str) -> Any:
    """The run's config."""
    from modelwright.configs.run import RunConfig

    batch = {"micro": 2, "global": 4}
    base = {"output": "unused", "steps": 2, "batch": batch, "data": {"seq_length": SIZES[size]["row"]}}
    return RunConfig.of(base | {"model": {"config": MODELS[model] | SIZES[size][model]}} | RUNS[run])


def measured(run: Any) -> int:
    """The peak of two steps, in bytes."""
    import torch

    from modelwright.data.documents import StepBatch
    from modelwright.training.build import model_of_config
    from modelwright.training.learner import Learner
    from modelwright.training.tuning import settle

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        model = model_of_config(run.model, 0)
        tuned = settle(model, run.tune)
        learner = Learner(model, run, tuned.groups, 2, tuned.trains("gate"))
        rows = run.batch.micro, run.data.seq_length
        for step in (1, 2):
            ids = torch.randint(5, 60, (2, *rows))
            micro = tuple({"input_ids": part, "labels": part} for part in ids)
            learner.step_on(step, StepBatch(micro, 0, 0, 4, (), 0))
            del ids, micro
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"])
    sizes = [each["args"] for each in events]
    return max(each["Total Allocated"] for each in sizes) - (sizes[0]["Total Allocated"] - sizes[0]["Bytes"])


def compare(model: str, size: str, run: str) -> Result:
    """A case."""
    from modelwright.cli.train_plan import planned
    from modelwright.families.read import config_of

    config = run_of(model, size, run)
    plan = planned(config, config_of(config.model.config, "model"))
    parts = {name: round(part / 2**20, 2) for name, part in plan.memory.items().items()}
    predicted, found = plan.memory.total / 2**20, measured(config) / 2**20
    return Result(
        model,
        size,
        run,
        parts,
        round(predicted, 1),
        round(found, 1),
        round(predicted / found - 1, 4),
    )


def main() -> None:
    """Compare the cases that are asked for, and say and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS))
    parser.add_argument("--size", choices=list(SIZES))
    parser.add_argument("--run", choices=list(RUNS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    results = []
    for size in SIZES if asked.size is None else [asked.size]:
        for model in MODELS if asked.model is None else [asked.model]:
            for run in RUNS if asked.run is None else [asked.run]:
                result = compare(model, size, run)
                results.append(asdict(result))
                print(
                    f"{model:12} {size:6} {run:22} predicted {result.predicted_mib:8.1f} MiB, measured "
                    f"{result.measured_mib:8.1f}, {result.error:+.1%}  {result.parts_mib}",
                    flush=True,
                )
    if asked.out is not None:
        asked.out.write_text(json.dumps({"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

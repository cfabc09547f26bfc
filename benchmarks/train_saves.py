"""What a checkpoint costs a run: steps while one is written, in turns with steps that have none; and a resume."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelwright.training import state
from modelwright.training.checkpoints import Checkpoints
from modelwright.training.trainer import Trainer


def measure_saves(build: Callable[[], Trainer], batch: Callable[[int], Any], rounds: int, steps: int) -> dict[str, Any]:
    """Medians of a step, of the call that saves, of the stall, and of a resume.

    Args:
        build: a trainer on new weights.
        batch: what the step of a number is taken on.
        steps: of a turn; the one with a checkpoint ends when that is on disk, and its seconds beyond those of a turn
            without one are the stall.

    Returns:
        ``seconds`` (by wall clock; ``cpu`` ones are of all threads) and ``stall`` as so many steps.
    """
    trainer, turns = build(), {name: [] for name in ("plain", "saving", "call", "plain cpu", "saving cpu")}
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder), trainer.config.checkpoint) as checkpoints:
            done = 0
            for turn in range(rounds + 1):
                for saves in (False, True) if turn % 2 else (True, False):
                    kept: dict[str, list[float]] = turns if turn else {name: [] for name in turns}
                    wall, cpu = time.perf_counter(), time.process_time()
                    if saves:
                        _save(trainer, checkpoints, turn)
                        kept["call"].append(time.perf_counter() - wall)
                    for number in range(done, done + steps):
                        trainer.step_on(batch(number))
                    done += steps
                    if saves:
                        checkpoints.wait()
                    name = "saving" if saves else "plain"
                    kept[name].append(time.perf_counter() - wall)
                    kept[f"{name} cpu"].append(time.process_time() - cpu)
        size = sum(file.stat().st_size for file in next(Path(folder).glob("step-*")).rglob("*") if file.is_file())
        resumed = [_resumed(build(), Path(folder)) for _ in range(rounds)]
    medians = {name: statistics.median(found) for name, found in turns.items()}
    step = medians["plain"] / steps
    seconds = {
        "step": step,
        "save call": medians["call"],
        "stall": medians["saving"] - medians["plain"],
        "stall cpu": medians["saving cpu"] - medians["plain cpu"],
        "resume": statistics.median(resumed),
    }
    return {"bytes": size, "seconds": seconds, "stall": seconds["stall"] / step, "turns": turns | {"resume": resumed}}


def _save(trainer: Trainer, checkpoints: Checkpoints, step: int) -> None:
    learner = trainer.learner
    checkpoints.save(step, state.tensors(learner), state.facts(learner), trainer.config.to_dict())


def _resumed(trainer: Trainer, folder: Path) -> float:
    """The seconds from a trainer on new weights to the state of the newest checkpoint, hashes compared."""
    start = time.perf_counter()
    with Checkpoints(folder, trainer.config.checkpoint) as checkpoints:
        saved = checkpoints.newest()
        assert saved is not None
        state.taken_over(trainer.learner, checkpoints.load(saved, state.tensors(trainer.learner)))
    return time.perf_counter() - start

"""The report of a run: its steps go to ``metrics.jsonl``, other programs, a plot, and to people as lines."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelwright.training.report import loss_plot
from modelwright.training.report.expert_loads import expert_loads
from modelwright.training.report.line import step_line
from modelwright.training.report.memory import memory_use
from modelwright.training.report.meter import Meter
from modelwright.training.report.metrics_file import NAME, MetricsFile, rows
from modelwright.training.report.peaks import peak_flops
from modelwright.training.report.profiling import Profiling
from modelwright.training.report.protocols import RunFacts
from modelwright.training.report.run_file import write_run_file
from modelwright.training.report.step_flops import StepFlops
from modelwright.training.report.writers import Writers, check_writers, open_writers
from modelwright.training.results import Ended, StepResult

PLOT = "loss.svg"
_PLOT_SECONDS = 20.0
"""How long a plot may lag behind the run."""


def no_lines(line: str) -> None:
    """Says nothing."""


class RunReport:
    """What one run says, into its folder and by lines.

    Every ``log.every`` steps, at the first and at the last one, a row is written and a line is said; what a step costs
    that is not logged is one addition. Nothing here ends a run but a disk that takes no more rows, once it was begun.

    Args:
        folder: the run's ``output``.
        log: which steps are logged, and where to (`configs.run.LogPart`).
        say: takes a line for people.
        progress: takes (step, steps, line) after every step, for a bar; the line is that of the last logged step.

    Raises:
        ConfigError: a package that ``log`` asks for is not installed.
    """

    def __init__(
        self,
        folder: Path,
        log: Any,
        say: Callable[[str], None] = no_lines,
        progress: Callable[[int, int, str], None] | None = None,
    ):
        check_writers(log)
        self._folder, self._log, self._say, self._progress = folder, log, say, progress
        self._facts = RunFacts(steps=0)
        self._meter, self._curves = Meter(), loss_plot.Curves()
        self._flops: StepFlops | None = None
        self._peak: float | None = None
        self._line, self._plotted = "", 0.0
        self._skipped = 0
        self._file: MetricsFile | None = None
        self._writers = Writers({}, self.note)
        self._profiling: Profiling | None = None

    def begin(self, facts: RunFacts) -> None:
        """Open the files, to go on after ``facts.done`` steps."""
        self._facts = facts
        self._folder.mkdir(parents=True, exist_ok=True)
        write_run_file(self._folder, facts)
        if self._log.jsonl:
            self._file = MetricsFile(self._folder, facts.done)
            before = list(rows(self._folder / NAME))
            self._curves = loss_plot.Curves.of(before)
            self._skipped = max((row.get("skipped", 0) for row in before), default=0)
        self._writers = open_writers(self._log, self._folder, facts, self.note)
        if facts.counts is not None:
            self._flops = StepFlops(facts.counts, facts.parameters)
            self._peak, _ = peak_flops(facts.device, facts.dtype)
        if self._log.profile is not None:
            self._profiling = Profiling(self._log.profile, self._folder, facts.device, self.note)
            self._profiling.begin(facts.done)

    def step(self, result: StepResult, more: Mapping[str, Any] | None = None) -> None:
        """Add a step up, and log it if its turn has come."""
        more = dict(more or {})
        batch = more.pop("batch", None)
        flops = None if self._flops is None or batch is None else self._flops(batch)
        self._meter.add(result.tokens, flops, result.seconds, result.data_seconds)
        if result.skipped is not None:
            self._skipped += 1
            self.note(f"step {result.step} was skipped: {result.skipped}")
        if self._is_logged(result.step):
            row = self._row(result, more, getattr(batch, "broken", None))
            self._write(row)
            self._line = step_line(row, self._facts.steps, self._meter.left(self._facts.steps - result.step))
            self._say(self._line)
        if self._progress is not None:
            self._progress(result.step, self._facts.steps, self._line)
        if self._profiling is not None:
            self._profiling.after(result.step)

    def evaluated(self, step: int, found: Mapping[str, Mapping[str, Any]]) -> None:
        """A row and a line of held-out sets."""
        if not found:
            return
        self._write({"step": step, "held_out": {name: dict(values) for name, values in found.items()}})
        for name, values in found.items():
            self._say(f"step {step}/{self._facts.steps}  {name}: {_said(values)}")

    def note(self, sentence: str) -> None:
        """A line."""
        self._say(sentence)

    def end(self, ended: Ended) -> None:
        """Close the files and draw the plot as it stands."""
        if self._profiling is not None:
            self._profiling.close()
        self._plot()
        self._writers.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_logged(self, step: int) -> bool:
        return step % self._log.every == 0 or step in (self._facts.done + 1, self._facts.steps)

    def _row(self, result: StepResult, more: Mapping[str, Any], broken: int | None) -> dict[str, Any]:
        speed, memory = self._meter.take(), memory_use(self._facts.device)
        flops = speed.flops_per_second
        row: dict[str, Any] = {
            "step": result.step,
            "loss": _number(result.loss),
            "lm": _number(result.lm),
            "balance": _number(result.balance),
            "counted": int(result.counted),
            "tokens": int(result.tokens),
            "norm": _number(result.norm),
            "norms": {name: _number(norm) for name, norm in result.norms.items()},
            "rates": dict(result.rates),
            "tokens_per_second": round(speed.tokens_per_second, 3),
            "flops_per_second": flops,
            "mfu": flops / self._peak if flops is not None and self._peak else None,
            "data_wait": round(speed.data_wait, 6),
            "step_seconds": {"p50": round(speed.p50, 6), "p95": round(speed.p95, 6)},
            "memory": {"now": memory.now, "peak": memory.peak, "total": memory.total},
            "skipped": self._skipped,
            "time": round(time.time(), 3),
        }
        if result.scale is not None:
            row["scale"] = _number(result.scale)
        if result.loads is not None:
            row["experts"] = expert_loads(result.loads, result.dropped)
        if broken is not None:
            row["broken"] = int(broken)
        return row | {name: _called(value) for name, value in more.items()}

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(row)
        self._curves.add(row)
        self._writers.log(row["step"], flat(row))
        if time.monotonic() - self._plotted >= _PLOT_SECONDS:
            self._plot()

    def _plot(self) -> None:
        self._plotted = time.monotonic()
        if not self._curves.training and not self._curves.held_out:
            return
        try:
            part = self._folder / f".{PLOT}.part"
            part.write_text(loss_plot.draw(self._curves, self._folder.name, self._facts.steps), encoding="utf-8")
            part.replace(self._folder / PLOT)
        except OSError as error:
            self.note(f"{PLOT} was not written: {error.strerror or error}")


def flat(row: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """A row's finite numbers, under names with slashes between their parts; not its step, nor its time."""
    found: dict[str, float] = {}
    for name, value in row.items():
        name = f"{before}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif isinstance(value, list):
            found |= flat({str(place): inner for place, inner in enumerate(value)}, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            found[name] = value
    return {name: value for name, value in found.items() if name not in ("step", "time")}


def _said(values: Mapping[str, Any]) -> str:
    said = {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return "  ".join(f"{name} {value}" for name, value in said.items())


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _called(value: Any) -> Any:
    """What a function gives, and any tensor of one number as a number."""
    value = value() if callable(value) else value
    return float(value) if hasattr(value, "item") else value

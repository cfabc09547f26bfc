"""What `benchmarks.engine` found: kept in a file from case to case, and shown as a table that README can take."""

import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OURS = "engine"


@dataclass
class Rate:
    """One case in one session: tokens per second of each contestant, round by round, and why others have none.

    `bytes_per_token` is what a token of a batch of one reads at least in bf16; None for other cases. `seconds` are
    medians of what was timed.
    """

    model: str
    case: str
    session: int
    tokens_per_second: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_per_token: int | None = None

    @property
    def medians(self) -> dict[str, float]:
        """By contestant."""
        return {name: statistics.median(rounds) for name, rounds in self.tokens_per_second.items()}

    @property
    def best_peer(self) -> tuple[str, float] | None:
        """The fastest of those that compute in bf16 and are not ours; in V, ``generate``."""
        found = {name: rate for name, rate in self.medians.items() if name != OURS and not _rounded(name)}
        return max(found.items(), key=lambda each: each[1]) if found else None

    @property
    def ratio(self) -> float | None:
        """The engine's rate to the best peer's of the same session."""
        best, own = self.best_peer, self.medians.get(OURS)
        return own / best[1] if best and own else None


@dataclass
class Start:
    """A process from its start to its first token; `kind` is ``first``, or ``again`` with the caches of the first."""

    model: str
    contestant: str
    kind: str
    seconds: float
    peak_gb: float


@dataclass
class Results:
    """Everything of one run; `settings` say whether another run may go on from it."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    weights_gb: dict[str, float] = field(default_factory=dict)
    limits: dict[str, list[float]] = field(default_factory=lambda: {"read_gb_per_s": [], "bf16_tflop_per_s": []})
    rates: list[Rate] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    peaks_gb: dict[str, dict[str, float]] = field(default_factory=dict)
    prefixes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def has(self, model: str, case: str, session: int) -> bool:
        """Whether that case was measured there."""
        return any((each.model, each.case, each.session) == (model, case, session) for each in self.rates)

    def limit(self, name: str) -> float | None:
        """The best look at one of the machine's limits, since whatever else runs there only lowers what is seen."""
        return max(self.limits[name], default=None)

    def save(self, path: Path) -> None:
        """Replace the file at once, so that a stop leaves the last whole one."""
        shown = asdict(self)
        for rate, own in zip(self.rates, shown["rates"], strict=True):
            own |= {"medians": rate.medians, "ratio": rate.ratio}
        shown["limits_best"] = {name: self.limit(name) for name in self.limits}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(shown, indent=1) + "\n")
        os.replace(part, path)

    @classmethod
    def resume(cls, path: Path, settings: dict[str, Any], machine: dict[str, Any]) -> "Results":
        """Those of the file, if they were found with the same settings; otherwise new ones."""
        found = cls(settings, machine)
        if not path.exists():
            return found
        kept = json.loads(path.read_text())
        if kept.get("settings") != settings:
            raise SystemExit(f"{path} was measured with {kept.get('settings')}, not with {settings}")
        names = ("versions", "weights_gb", "limits", "peaks_gb", "prefixes")
        for name in names:
            setattr(found, name, kept[name])
        found.rates = [
            Rate(**{k: v for k, v in each.items() if k not in ("medians", "ratio")}) for each in kept["rates"]
        ]
        found.starts = [Start(**each) for each in kept["starts"]]
        return found


def _rounded(name: str) -> bool:
    return any(kind in name for kind in ("int8", "int4", "Q8_0", "Q4_0"))


def table(results: Results) -> str:
    """Markdown: a row a case, tokens per second, and the engine's ratio to the best bf16 peer of its session."""
    names = list(dict.fromkeys(name for rate in results.rates for name in rate.tokens_per_second))
    lines = [_row(["tokens/s", *names, "engine to best peer"]), _row(["---", *["---:"] * (len(names) + 1)])]
    for model, case in dict.fromkeys((rate.model, rate.case) for rate in results.rates):
        own = [rate for rate in results.rates if (rate.model, rate.case) == (model, case)]
        cells = [_cell([rate.medians[name] for rate in own if name in rate.medians]) for name in names]
        ratios = [rate.ratio for rate in own if rate.ratio is not None]
        lines.append(_row([f"{model} {case}", *cells, f"{min(ratios):.2f}" if ratios else "–"]))
    return "\n".join([*lines, "", *_notes(results)])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(rates: list[float]) -> str:
    """The median over the sessions."""
    if not rates:
        return "–"
    rate = statistics.median(rates)
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def _notes(results: Results) -> list[str]:
    """What does not fit into rows: limits, starts, memory, prefixes, who was left out."""
    lines = [*_of_the_limits(results)]
    for rate in results.rates:
        lines += [f"{rate.model} {rate.case}, {name}: {why}." for name, why in rate.left_out.items()]
    starts = {(each.model, each.contestant, each.kind): each for each in reversed(results.starts)}
    for start in reversed(starts.values()):
        lines.append(f"{start.model} {start.contestant}, {start.kind} start: first token after {start.seconds:.1f} s.")
    for model, peaks in results.peaks_gb.items():
        shown = ", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items())
        lines.append(f"{model} peak memory, GB ({results.weights_gb[model]:.2f} of bf16 weights): {shown}.")
    for model, kinds in results.prefixes.items():
        less = kinds["computed"]["tokens"] / kinds["reused"]["tokens"]
        lines.append(
            f"{model} shared prefix: {less:.1f} times fewer prompt tokens computed, "
            f"{kinds['reused']['seconds']:.1f} s instead of {kinds['computed']['seconds']:.1f} s."
        )
    return [f"- {line}" for line in lines]


def _of_the_limits(results: Results) -> Iterator[str]:
    """The machine's, and how near to reading at its limit the engine decodes one sequence."""
    read, multiplied = results.limit("read_gb_per_s"), results.limit("bf16_tflop_per_s")
    if not read:
        return
    looks = len(results.limits["read_gb_per_s"])
    yield f"Limits, best of {looks} looks: read {read:.1f} GB/s, bf16 {multiplied:.2f} TFLOP/s."
    for model, case in dict.fromkeys((rate.model, rate.case) for rate in results.rates if rate.bytes_per_token):
        own = [rate for rate in results.rates if (rate.model, rate.case) == (model, case)]
        rates = [rate.medians[OURS] for rate in own if OURS in rate.medians]
        if rates and own[0].bytes_per_token:
            share = statistics.median(rates) * own[0].bytes_per_token / 1e9 / read
            yield f"{model} {case}: the engine reads at {share:.0%} of the limit."

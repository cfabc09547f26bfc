"""The numbers of a benchmark, as an object for programs and as a table for people; docs/engine.md defines them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelwright.cli.bench_round import Record, Round

TIMES = {
    "ttft_ms": "time to first token (TTFT)",
    "tpot_ms": "time per output token (TPOT)",
    "itl_ms": "inter-token latency (ITL)",
    "request_ms": "whole request",
}
RATES = {"prompt": "prompt tokens/s", "output": "output tokens/s", "total": "tokens/s in all"}


@dataclass(frozen=True)
class Spread:
    """Of many times: their mean, median and 99th percentile (interpolated), in milliseconds."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """None of nothing."""
        if not seconds:
            return None
        values = 1000 * np.asarray(seconds)
        p50, p99 = np.percentile(values, [50, 99])
        return cls(float(values.mean()), float(p50), float(p99))


def times(rounds: Iterable[Round]) -> dict[str, Spread | None]:
    """The times of all requests of all rounds; inter-token latencies are pooled, so long requests count more."""
    records: list[Record] = [record for one in rounds for record in one.records]
    return {
        "ttft_ms": Spread.of([record.first for record in records]),
        "tpot_ms": Spread.of([each for record in records if (each := record.per_token) is not None]),
        "itl_ms": Spread.of([gap for record in records for gap in record.gaps]),
        "request_ms": Spread.of([record.whole for record in records]),
    }


def rates(rounds: Sequence[Round]) -> dict[str, float]:
    """Tokens of all rounds by the seconds of all rounds."""
    seconds = sum(one.seconds for one in rounds)
    prompt = sum(record.prompt_tokens for one in rounds for record in one.records) / seconds
    output = sum(len(record.tokens) for one in rounds for record in one.records) / seconds
    return {"prompt": prompt, "output": output, "total": prompt + output}


def hit_rate(rounds: Iterable[Round]) -> float:
    """The share of the prompts' tokens that no step computed; tokens that are computed again lower it."""
    asked = found = 0
    for one in rounds:
        prompts = sum(record.prompt_tokens for record in one.records)
        decodes = sum(len(record.tokens) - 1 for record in one.records)  # the first is drawn where the prompt ends
        asked += prompts
        found += max(0, prompts + decodes - one.load.computed)
    return found / asked


def as_object(rounds: Sequence[Round]) -> dict[str, Any]:
    """What the rounds say, rounded to 4 digits behind the point."""
    spreads = {name: spread and _rounded(vars(spread)) for name, spread in times(rounds).items()}
    return spreads | {
        "tokens_per_second": _rounded(rates(rounds)),
        "seconds": [round(one.seconds, 4) for one in rounds],
        "steps": sum(one.load.steps for one in rounds),
        "preempted": sum(one.load.preempted for one in rounds),
        "kv_pages": {"max_used": max(one.load.pages_used for one in rounds), "all": rounds[-1].load.pages},
        "host_pages": {"max_used": max(one.load.pages_stored for one in rounds)},
        "hit_rate": round(hit_rate(rounds), 4),
    }


def title(report: dict[str, Any]) -> str:
    """What was measured, in a line."""
    count = report["requests"]
    said = f"{report['model']}: {report['benchmark']}, {count} request{'s' * (count != 1)} a round, "
    return said + f"{report['prompt_tokens']} tokens in and {report['output_tokens']} out"


def as_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The object of ``--json`` as rows: what, and its mean, median and 99th percentile where it has them."""
    pages = report["kv_pages"]
    rows = [(words, *_shown(report[name])) for name, words in TIMES.items()]
    single = {words: f"{report['tokens_per_second'][name]:.1f}" for name, words in RATES.items()}
    for where, size in report["peak_memory_bytes"].items():
        single[f"peak memory, {where}"] = f"{size / 2**20:.0f} MiB"
    single["pages of the cache in use"] = f"{pages['max_used']} of {pages['all']}"
    single["of the prompts found in the cache"] = f"{report['hit_rate']:.1%}"
    single["preempted"] = str(report["preempted"])
    return rows + [(words, value, "", "") for words, value in single.items()]


def _shown(spread: dict[str, float] | None) -> tuple[str, str, str]:
    mean, p50, p99 = ("-" if spread is None else f"{spread[each]:.2f} ms" for each in ("mean", "p50", "p99"))
    return mean, p50, p99


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}

"""What was asked of ``modelwright bench``, checked before anything heavy is imported."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from modelwright.cli.engine_options import EngineOptions
from modelwright.errors import RequestError


@dataclass(frozen=True)
class BenchOptions:
    """The options of both benchmarks, named as there.

    Attributes:
        kind: latency, where `requests` start together, or throughput, where they may come at a rate.
        input: a file of prompts as `generate` takes it; None for random tokens.
        requests: how many there are in a round.
        request_rate: how many come in a second, on average; None for all at once.
        warmup, repeats: rounds that are not measured, and that are.
    """

    kind: str
    model: str
    input: Path | None = None
    input_len: int = 128
    output_len: int = 64
    requests: int = 1
    request_rate: float | None = None
    warmup: int = 1
    repeats: int = 1
    seed: int = 0
    engine: EngineOptions = field(default_factory=EngineOptions)
    dtype: str = "auto"
    device: str = "auto"
    as_json: bool = False

    def check(self) -> None:
        """Raise a RequestError for the first option that cannot be served."""
        self.engine.check()
        count = "--batch" if self.kind == "latency" else "--requests"
        for name, value, least in (
            ("--input-len", self.input_len, 1),
            ("--output-len", self.output_len, 1),
            (count, self.requests, 1),
            ("--warmup", self.warmup, 0),
            ("--repeats", self.repeats, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise RequestError(f"{name} must be at least {least}, got {value}")
        rate = self.request_rate
        if rate is not None and not 0 < rate < math.inf:
            raise RequestError(f"--request-rate must be above 0, got {rate}")
        if self.input is not None and not self.input.is_file():
            raise RequestError(f"--input {self.input}: there is no such file")

"""The options of ``modelwright bench``, checked before anything heavy is imported."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from modelwright.cli.options import ChatTemplate, EngineOptions, Machine, Model, require_at_least, require_at_most
from modelwright.cli.quick_checks import check_model
from modelwright.cli.source import check_input
from modelwright.errors import RequestError

MOST = 10**6
"""Of requests in a round, of rounds and of tokens: they are held in memory."""
Repeats = Annotated[int, Option(help="Rounds that are measured.", metavar="N")]


@dataclass(frozen=True)
class Measuring:
    """What both benchmarks are told of their rounds, their engine and their report."""

    input: Annotated[
        Path | None,
        Option(
            "-i",
            "--input",
            help="Prompts in JSON lines, as `generate` takes them, instead of random tokens; their sampling fields are "
            "not used.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    input_len: Annotated[int, Option(help="Tokens of a random prompt.", metavar="N")] = 128
    output_len: Annotated[int, Option(help="Tokens of each answer, whatever they are.", metavar="N")] = 64
    warmup: Annotated[int, Option(help="Rounds before those that are measured.", metavar="N")] = 1
    seed: Annotated[int, Option(help="Of the random prompts and arrivals.")] = 0
    chat_template: ChatTemplate = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    machine: Machine = field(default_factory=Machine)
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")] = False

    def check(self) -> None:
        """Raise a RequestError or a ConfigError for the first option that cannot be served."""
        self.engine.check()
        self.machine.check()
        require_at_least(1, input_len=self.input_len, output_len=self.output_len)
        require_at_least(0, warmup=self.warmup, seed=self.seed)
        require_at_most(MOST, input_len=self.input_len, output_len=self.output_len, warmup=self.warmup)
        if self.input is not None:
            check_input(self.input)
        if self.chat_template is not None and self.input is None:
            raise RequestError("--chat-template prints the messages of a file, so it needs --input")


@dataclass(frozen=True)
class LatencyOptions:
    """The options of ``modelwright bench latency``, whose requests start together."""

    kind: ClassVar[str] = "latency"
    request_rate: ClassVar[None] = None

    model: Model
    requests: Annotated[int, Option(help="Requests that start together.", metavar="N")] = 1
    repeats: Repeats = 5
    measuring: Measuring = field(default_factory=Measuring)

    def check(self) -> None:
        """Raise a RequestError or a ConfigError for the first option that cannot be served."""
        check_model(self.model)
        self.measuring.check()
        require_at_least(1, requests=self.requests, repeats=self.repeats)
        require_at_most(MOST, requests=self.requests, repeats=self.repeats)


@dataclass(frozen=True)
class ThroughputOptions:
    """The options of ``modelwright bench throughput``, whose requests come at once or at a rate."""

    kind: ClassVar[str] = "throughput"

    model: Model
    requests: Annotated[int, Option(help="Requests of a round.", metavar="N")] = 64
    request_rate: Annotated[
        float | None,
        Option(help="How many come in a second, at random times. Left out: all at once.", metavar="R"),
    ] = None
    repeats: Repeats = 1
    measuring: Measuring = field(default_factory=Measuring)

    def check(self) -> None:
        """Raise a RequestError or a ConfigError for the first option that cannot be served."""
        check_model(self.model)
        self.measuring.check()
        require_at_least(1, requests=self.requests, repeats=self.repeats)
        require_at_most(MOST, requests=self.requests, repeats=self.repeats)
        rate = self.request_rate
        if rate is not None and not 0 < rate < math.inf:
            raise RequestError(f"request_rate must be above 0, got {rate}", field="request_rate")


BenchOptions = LatencyOptions | ThroughputOptions

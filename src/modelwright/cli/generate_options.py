"""The options of ``modelwright generate``, checked before anything heavy is imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from modelwright.cli.files import check_place
from modelwright.cli.options import ChatTemplate, EngineOptions, Machine, Model, Sampling
from modelwright.cli.quick_checks import check_model
from modelwright.cli.source import check_input
from modelwright.errors import RequestError

STANDARD = Path("-")
"""stdin as an input, stdout as an output."""


@dataclass(frozen=True)
class GenerateOptions:
    """The options of ``modelwright generate``, named as there; sampling is for lines that do not say."""

    model: Model
    input: Annotated[
        Path,
        Option(
            "-i",
            "--input",
            help='JSON lines with "prompt", "messages" or "prompt_token_ids", and sampling fields; - is stdin.',
            metavar="FILE",
            show_default=False,
        ),
    ]
    output: Annotated[
        Path,
        Option(
            "-o",
            "--output",
            help="Where the answers go, a JSON line each, in order; what is there already is kept. - is stdout.",
            metavar="FILE",
            show_default=False,
        ),
    ]
    overwrite: Annotated[bool, Option("--overwrite", help="Start anew instead of keeping what is there.")] = False
    sampling: Sampling = field(default_factory=Sampling)
    chat_template: ChatTemplate = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    machine: Machine = field(default_factory=Machine)

    def check(self) -> None:
        """Raise a RequestError or a ConfigError for the first option that cannot be served."""
        self.sampling.check()
        self.engine.check()
        self.machine.check()
        check_model(self.model)
        check_input(self.input)
        if self.output == STANDARD:
            return
        check_place(self.output, f"--output {self.output}")
        if self.input != STANDARD and self.output.exists() and self.output.samefile(self.input):
            raise RequestError(f"--output {self.output} must not be the input")

    def defaults(self) -> dict[str, Any]:
        """What lines get where they do not say, as fields of `SamplingParams`."""
        return self.sampling.given()

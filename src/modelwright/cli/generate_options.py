"""What was asked of ``modelwright generate``, checked before anything heavy is imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelwright.cli.engine_options import EngineOptions
from modelwright.cli.options import Sampling
from modelwright.errors import RequestError

STANDARD = Path("-")
"""stdin as an input, stdout as an output."""


@dataclass(frozen=True)
class GenerateOptions:
    """The options of ``modelwright generate``, named as there."""

    model: str
    input: Path
    output: Path
    overwrite: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    engine: EngineOptions = field(default_factory=EngineOptions)
    dtype: str = "auto"
    device: str = "auto"

    def check(self) -> None:
        """Raise a RequestError for the first option that cannot be served."""
        self.sampling.check()
        self.engine.check()
        if "" in self.stop:
            raise RequestError("--stop must not be empty")
        if self.input != STANDARD and not self.input.is_file():
            raise RequestError(f"--input {self.input}: there is no such file")
        if self.output == STANDARD:
            return
        if self.output.is_dir() or not self.output.parent.is_dir():
            raise RequestError(f"--output {self.output}: the file cannot be written")
        if self.input != STANDARD and self.output.exists() and self.output.samefile(self.input):
            raise RequestError(f"--output {self.output} must not be the input")

    def defaults(self) -> dict[str, Any]:
        """What lines get where they do not say, under the names in `SamplingParams`."""
        return self.sampling.given() | ({"stop": self.stop} if self.stop else {})

"""What ``modelwright evaluate`` was asked, checked before anything heavy is imported."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from modelwright.cli.quick_checks import DTYPES, check_choice, check_device, check_model
from modelwright.errors import RequestError

LABELS = ("assistant", "last", "all")
FOR_DATA = ("format", "labels", "seq_length", "exact")
FOR_TASKS = ("include_path", "fewshot", "output")


@dataclass(frozen=True)
class EvaluateOptions:
    """The options, named as on the command line."""

    model: str
    data: tuple[str, ...] = ()
    format: str | None = None
    labels: str | None = None
    seq_length: int | None = None
    exact: bool = False
    tasks: str | None = None
    include_path: Path | None = None
    fewshot: int | None = None
    limit: int | None = None
    output: Path | None = None
    requests: int | None = None
    adapter: Path | None = None
    dtype: str = "auto"
    device: str = "auto"
    as_json: bool = False

    def check(self) -> None:
        """Raise a RequestError, ConfigError or CheckpointError where the options do not go together."""
        if bool(self.data) == (self.tasks is not None):
            given = "both" if self.data else "neither"
            raise RequestError(f"evaluate takes either --data or --tasks, got {given}")
        others, needs = (FOR_TASKS, "--tasks") if self.data else (FOR_DATA, "--data")
        for name in others:
            if getattr(self, name) not in (None, False):
                raise RequestError(f"--{name.replace('_', '-')} goes with {needs}")
        for name, least in (("seq_length", 2), ("fewshot", 0), ("limit", 1), ("requests", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        check_choice("labels", self.labels, LABELS)
        check_choice("dtype", self.dtype, DTYPES)
        check_device(self.device)
        check_model(self.model)
        for name in ("lm_eval", "accelerate"):
            if self.tasks is not None and find_spec(name) is None:
                package = name.replace("_", "-")
                raise RequestError(f'--tasks needs {package}, which is not installed: pip install "modelwright[eval]"')

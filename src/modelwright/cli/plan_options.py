"""The options of ``modelwright plan``, checked before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from modelwright.cli.files import check_place
from modelwright.cli.quick_checks import check_model
from modelwright.errors import RequestError


@dataclass(frozen=True)
class PlanOptions:
    """The options of ``modelwright plan``, named as there; None is one that was not given."""

    config: str
    context: int | None = None
    batch: int | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    quant: str | None = None
    image: str | None = None
    device: str | None = None
    train: bool = False
    optimizer: str | None = None
    recompute: bool | None = None
    attention: str | None = None
    as_json: bool = False
    plot: Path | None = None

    def check(self) -> None:
        """Raise an error for a model that can be none, and for options that contradict each other."""
        check_model(self.config)
        for name, given in (("--optimizer", self.optimizer), ("--recompute", self.recompute)):
            if given is not None and not self.train:
                raise RequestError(f"{name} says how to train, so it needs --train")
        if self.plot is not None and self.plot.suffix.lower() != ".svg":
            raise RequestError(f"--plot {self.plot}: the picture is an SVG, so its name must end in .svg")
        if self.plot is not None:
            check_place(self.plot, f"--plot {self.plot}")

"""What was asked of ``modelwright complete-image``, checked before anything heavy is imported."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from modelwright.cli.options import Sampling
from modelwright.errors import RequestError

DEFAULT_MODEL = "imagegpt-nano"


@dataclass(frozen=True)
class CompleteImageOptions:
    """The options of ``modelwright complete-image``, named as there; None is one that was not given."""

    picture: Path | None = None
    model: str | None = None
    keep: float = 0.5
    count: int = 4
    output: Path = Path("completed.png")
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    onnx: Path | None = None
    dtype: str = "auto"
    device: str = "auto"
    as_json: bool = False
    stats: bool = False

    def check(self) -> None:
        """Raise a RequestError for the first option that cannot be served."""
        if not 0 <= self.keep < 1:
            raise RequestError(f"--keep must be at least 0 and below 1, got {self.keep}")
        if self.picture is None and self.keep > 0:
            raise RequestError(f"--keep {self.keep:g} needs a PICTURE to keep the top of; --keep 0 does without")
        if self.count < 1:
            raise RequestError(f"-n must be at least 1, got {self.count}")
        self.sampling.check()
        self._check_onnx()
        self._check_output()

    def _check_onnx(self) -> None:
        if self.onnx is None:
            return
        for option, value, default in (
            ("--model", self.model, None),
            ("--dtype", self.dtype, "auto"),
            ("--device", self.device, "auto"),
        ):
            if value != default:
                raise RequestError(
                    f"--onnx {self.onnx} fixes the model, its numbers and its device: leave out {option}"
                )

    def _check_output(self) -> None:
        path, folder = self.output, self.output.parent
        if path.suffix.lower() != ".png":
            raise RequestError(f"-o {path}: the name must end in .png")
        if not folder.is_dir():
            raise RequestError(f"-o {path}: there is no folder {folder}")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise RequestError(f"-o {path}: the file cannot be written")
        if self.picture is not None and path.exists() and self.picture.exists() and path.samefile(self.picture):
            raise RequestError(f"-o {path} is the PICTURE itself, which would be lost")


def kept_rows(keep: float, height: int) -> int:
    """The whole rows nearest to the share ``keep`` of ``height``, halves up; at least one row is left to sample."""
    return min(math.floor(keep * height + 0.5), height - 1)

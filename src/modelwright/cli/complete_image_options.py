"""The options of ``modelwright complete-image``, checked before anything heavy is imported."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Argument, Option

from modelwright.cli import completions
from modelwright.cli.files import check_place
from modelwright.cli.options import Place, require_at_least, require_at_most
from modelwright.cli.quick_checks import HUB_ID, check_model, looks_like_a_model
from modelwright.cli.streams import is_text
from modelwright.configs.limits import check_sampling
from modelwright.errors import RequestError

DEFAULT_MODEL = "imagegpt-nano"
MOST_SAMPLES = 4096
"""On one contact sheet."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".ppm")
"""Endings by which a lone word that is not there is taken for a picture."""


@dataclass(frozen=True)
class ColourSampling:
    """How colours are chosen, by the names of `SamplingParams`."""

    PANEL: ClassVar[str] = "Samples"

    temperature: Annotated[
        float, Option(help="0 takes the likeliest colour each time, more is wilder; 1 is what the model learned.")
    ] = 1.0
    top_p: Annotated[float | None, Option(help="Sample from the likeliest colours of this total probability.")] = None
    top_k: Annotated[int | None, Option(help="Sample from this many of the likeliest colours; 0 is all.")] = None
    seed: Annotated[int | None, Option(help="The same seed gives the same sheet. Left out: drawn and told.")] = None

    def check(self) -> None:
        """Raise a RequestError for the first option out of its range."""
        check_sampling(vars(self))


@dataclass(frozen=True)
class CompleteImageOptions:
    """The options of ``modelwright complete-image``, named as there; None is one that was not given."""

    first: Annotated[
        str | None,
        Argument(
            help="An ImageGPT: a name from `modelwright models`, a checkpoint folder, or a hub id like org/name. "
            "May be left out: imagegpt-nano then draws.",
            metavar="MODEL",
            show_default=False,
            autocompletion=completions.models,
        ),
    ] = None
    second: Annotated[
        str | None,
        Argument(
            help="The picture whose top is kept; its middle is cut to the model's shape. --keep 0 needs none.",
            metavar="PICTURE",
            show_default=False,
        ),
    ] = None
    old_model: Annotated[str | None, Option("--model", hidden=True)] = None
    keep: Annotated[float, Option(help="Share of the rows to keep, from the top, to the nearest whole row.")] = 0.5
    count: Annotated[int, Option("-n", "--samples", help="How many ways to complete it.", metavar="N")] = 4
    output: Annotated[Path, Option("-o", "--output", help="Where to write the contact sheet.", metavar="OUT.png")] = (
        Path("completed.png")
    )
    sampling: ColourSampling = field(default_factory=ColourSampling)
    onnx: Annotated[
        Path | None,
        Option(
            help="Sample with onnxruntime alone, from a folder made by `modelwright export onnx`.", metavar="FOLDER"
        ),
    ] = None
    place: Place = field(default_factory=Place)
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, with the samples' colours.")] = False
    stats: Annotated[bool, Option("--stats", help="Say on stderr how many pixels, how fast, how much memory.")] = False

    @property
    def model(self) -> str | None:
        """The model, if one is named."""
        return self._asked[0]

    @property
    def picture(self) -> Path | None:
        """The picture, if one is given."""
        return None if self._asked[1] is None else Path(self._asked[1])

    @property
    def _asked(self) -> tuple[str | None, str | None]:
        """Model and picture; a lone word is a model where it names one and is no file."""
        if self.old_model is not None:
            return self.old_model, self.first
        if self.second is None and (self.first is None or not _names_a_model(self.first)):
            return None, self.first
        return self.first, self.second

    def check(self) -> None:
        """Raise an error for the first option that cannot be served."""
        if self.old_model is not None and self.second is not None:
            raise RequestError("a model is named twice: leave out --model")
        if self.model is not None and not is_text(self.model):
            raise RequestError(f"MODEL must be text in UTF-8, got {self.model!r:.80}")
        if not 0 <= self.keep < 1:
            raise RequestError(f"--keep must be at least 0 and below 1, got {self.keep}")
        if self.picture is None and self.keep > 0:
            raise RequestError(f"--keep {self.keep:g} needs a PICTURE to keep the top of; --keep 0 does without")
        require_at_least(1, samples=self.count)
        require_at_most(MOST_SAMPLES, samples=self.count)
        self.sampling.check()
        self.place.check()
        if self.model is not None:
            check_model(self.model)
        self._check_onnx()
        self._check_output()

    def _check_onnx(self) -> None:
        if self.onnx is None:
            return
        for option, value, default in (
            ("MODEL" if self.old_model is None else "--model", self.model, None),
            ("--dtype", self.place.dtype, "auto"),
            ("--device", self.place.device, "auto"),
        ):
            if value != default:
                raise RequestError(
                    f"--onnx {self.onnx} fixes the model, its numbers and its device: leave out {option}"
                )

    def _check_output(self) -> None:
        path = self.output
        if path.suffix.lower() != ".png" and not _is_device(path):
            raise RequestError(f"--output {path}: the name must end in .png")
        check_place(path, f"--output {path}")
        if self.picture is not None and path.exists() and self.picture.exists() and path.samefile(self.picture):
            raise RequestError(f"--output {path} is the PICTURE itself, which would be lost")


def _is_device(path: Path) -> bool:
    """Whether it is a pipe or a device, whose name says nothing of what is written to it."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _names_a_model(text: str) -> bool:
    path = Path(text)
    if path.suffix.lower() in PICTURES or path.is_file():
        return False
    return path.is_dir() or HUB_ID.fullmatch(text) is not None or looks_like_a_model(text)


def kept_rows(keep: float, height: int) -> int:
    """The whole rows nearest to the share ``keep`` of ``height``, halves up; at least one row is left to sample."""
    return min(math.floor(keep * height + 0.5), height - 1)

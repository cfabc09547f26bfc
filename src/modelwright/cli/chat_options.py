"""The options of ``modelwright chat``, checked before anything heavy is imported."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modelwright import zoo
from modelwright.cli.options import AsJson, ChatTemplate, Machine, Sampling, require_at_least, sampling_option
from modelwright.configs.limits import check_sampling
from modelwright.errors import RequestError

DEFAULT_MODEL = "vl2-nano"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PATH = re.compile(r"(\.{1,2}|~)?/\S*")


@dataclass(frozen=True)
class ChatOptions:
    """The options of ``modelwright chat``, named as there."""

    model: Annotated[
        str | None,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name. "
            "May be left out: vl2-nano then answers, and a lone argument that is none of these is the prompt.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None
    prompt: Annotated[
        str | None,
        Argument(
            help="The question; without it an interactive session starts (/help lists its commands).",
            metavar="PROMPT",
            show_default=False,
        ),
    ] = None
    image: Annotated[
        list[Path] | None, Option(help="A picture to show; repeat for more.", metavar="PATH", show_default=False)
    ] = None
    draw: Annotated[
        Path | None, Option(help="Write the last picture with the boxes of the answer.", metavar="OUT.png")
    ] = None
    sampling: Sampling = field(default_factory=Sampling)
    repetition_penalty: Annotated[float | None, sampling_option("repetition_penalty", "Left out: 1.")] = None
    chunk_size: Annotated[
        int | None, Option(help="Read the prompt this many tokens at a time, to bound memory.", metavar="N")
    ] = None
    machine: Machine = field(default_factory=Machine)
    system: Annotated[str, Option(help="Instructions put before the conversation.", metavar="TEXT")] = ""
    chat_template: ChatTemplate = None
    as_json: AsJson = False
    stats: Annotated[bool, Option("--stats", help="Say on stderr how many tokens, how fast, how much memory.")] = False

    @property
    def asked(self) -> tuple[str, str | None]:
        """The model and the prompt."""
        return choose_model(self.model, self.prompt)

    @property
    def images(self) -> tuple[Path, ...]:
        """The pictures to show."""
        return tuple(self.image or ())

    def params(self) -> dict[str, Any]:
        """The sampling options that were given, as fields of `SamplingParams`."""
        penalty = self.repetition_penalty
        return self.sampling.given() | ({} if penalty is None else {"repetition_penalty": penalty})

    def check(self) -> None:
        """Raise a RequestError for the first option that cannot be served."""
        check_sampling(self.params())
        self.machine.check()
        require_at_least(1, chunk_size=self.chunk_size)
        _, prompt = self.asked
        if prompt is None and self.as_json:
            raise RequestError("--json prints one answer, so it needs a PROMPT")
        if prompt is not None and not prompt.strip():
            raise RequestError("the prompt is empty")
        if prompt is not None and self.draw is not None and not self.images:
            raise RequestError("--draw draws on a picture, so it needs --image")


def choose_model(first: str | None, second: str | None) -> tuple[str, str | None]:
    """The model and the prompt among two positional arguments; a lone one is whichever it looks like."""
    if first is None:
        return DEFAULT_MODEL, second
    if second is not None or _names_a_model(first):
        return first, second
    return DEFAULT_MODEL, first


def _names_a_model(text: str) -> bool:
    """A zoo name, a path (there or not) or a hub id; words are a prompt."""
    if text in (DEFAULT_MODEL, *zoo.names()) or _HUB_ID.fullmatch(text) or _PATH.fullmatch(text):
        return True
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False

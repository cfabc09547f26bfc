"""The options of ``modelwright chat``, checked before anything heavy is imported."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modelwright.cli import completions
from modelwright.cli.options import AsJson, ChatEngine, ChatTemplate, Machine, Sampling
from modelwright.cli.quick_checks import check_model, looks_like_a_model
from modelwright.errors import RequestError

DEFAULT_MODEL = "vl2-nano"


@dataclass(frozen=True)
class ChatOptions:
    """The options of ``modelwright chat``, named as there."""

    model: Annotated[
        str | None,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, a GGUF file, or a hub id like org/name. "
            "May be left out: vl2-nano then answers, and a lone argument that is none of these is the prompt.",
            metavar="MODEL",
            show_default=False,
            autocompletion=completions.models,
        ),
    ] = None
    prompt: Annotated[
        str | None,
        Argument(
            help="The question, or - for stdin; without it an interactive session starts (/help lists its commands).",
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
    system: Annotated[str, Option(help="Instructions put before the conversation.", metavar="TEXT")] = ""
    chat_template: ChatTemplate = None
    sampling: Sampling = field(default_factory=Sampling)
    engine: ChatEngine = field(default_factory=ChatEngine)
    machine: Machine = field(default_factory=Machine)
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
        return self.sampling.given()

    def check(self) -> None:
        """Raise an error for the first option that cannot be served."""
        self.sampling.check()
        self.engine.check()
        self.machine.check()
        model, prompt = self.asked
        check_model(model)
        if prompt is None and self.as_json:
            raise RequestError("--json prints one answer, so it needs a PROMPT")
        if prompt is not None and not prompt.strip():
            raise RequestError("the prompt is empty")
        if self.system.strip() == "-":
            raise RequestError(
                '--system is -, and only a PROMPT is read from stdin: give a text, such as "$(cat FILE)"'
            )
        if prompt is not None and self.draw is not None and not self.images:
            raise RequestError("--draw draws on a picture, so it needs --image")


def choose_model(first: str | None, second: str | None) -> tuple[str, str | None]:
    """The model and the prompt among two positional arguments; a lone one is whichever it looks like."""
    if first is None:
        return DEFAULT_MODEL, second
    if second is not None or first == DEFAULT_MODEL or looks_like_a_model(first):
        return first, second
    return DEFAULT_MODEL, first

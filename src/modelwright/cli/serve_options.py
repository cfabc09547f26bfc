"""The options of ``modelwright serve``: flags, variables and a file, checked before anything heavy is imported."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modelwright.cli import completions
from modelwright.cli.option_names import OLD_NAMES, Command, option_name
from modelwright.cli.options import EngineOptions, Machine
from modelwright.cli.quick_checks import check_model
from modelwright.errors import RequestError
from modelwright.server.settings import ServerSettings
from modelwright.server.sources import Flag, gather

ALONE = ("--config", "--print-config", "--check", "--help")
"""Flags that only a command line can give: each is about one start."""
SERVE_PACKAGES = ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client", "llguidance")
"""What a server imports besides the packages that come with modelwright."""


@dataclass(frozen=True)
class ServeOptions:
    """The options of ``modelwright serve``, named as there."""

    model: Annotated[
        str | None,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, a GGUF file, or a hub id like org/name.",
            metavar="MODEL",
            show_default=False,
            autocompletion=completions.models,
        ),
    ] = None
    named: Annotated[
        str | None,
        Option("--model", help="The same, where a file or a variable says it.", metavar="MODEL", hidden=True),
    ] = None
    config: Annotated[
        Path | None,
        Option(
            help="A YAML file whose keys are these flags without --. A variable MODELWRIGHT_SERVE_<FLAG> comes before "
            "it, a flag before both.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None
    print_config: Annotated[
        bool,
        Option("--print-config", help="Print what results of flags, variables and file, without secrets, and leave."),
    ] = False
    check_only: Annotated[
        bool, Option("--check", help="Say whether the server could start, and leave; nothing is loaded.")
    ] = False
    merge_adapter: Annotated[
        list[str] | None,
        Option(
            help="Fold the adapter that peft saved in FOLDER into the weights, and call the model NAME.",
            metavar="NAME=FOLDER",
            show_default=False,
        ),
    ] = None
    settings: ServerSettings = field(default_factory=ServerSettings)
    engine: EngineOptions = field(default_factory=EngineOptions)
    machine: Machine = field(default_factory=Machine)

    @property
    def asked(self) -> str:
        """The model.

        Raises:
            RequestError: none is named.
        """
        name = self.model or self.named
        if not name:
            raise RequestError("a server needs a MODEL, such as vl2-nano")
        return name

    @property
    def names(self) -> tuple[str, ...]:
        """What requests call the model: what was said, the adapter's name, or its own, of a folder the last part."""
        if self.settings.served_model_name:
            return self.settings.served_model_name
        if self.adapter is not None:
            return (self.adapter[0],)
        path = Path(os.path.expanduser(self.asked))
        return (path.resolve().name if path.exists() else self.asked,)

    @property
    def adapter(self) -> tuple[str, Path] | None:
        """What is folded in: its name, and its folder."""
        if not self.merge_adapter:
            return None
        if len(self.merge_adapter) > 1:
            raise RequestError(
                f"merge_adapter may be given once, for one is folded into the weights, got {len(self.merge_adapter)}: "
                "serve each adapter by a server of its own",
                field="merge_adapter",
            )
        name, mark, folder = self.merge_adapter[0].partition("=")
        if not mark or not name.strip() or not folder:
            raise RequestError(
                f"merge_adapter must be NAME=FOLDER, got {self.merge_adapter[0]!r:.80}", field="merge_adapter"
            )
        return name.strip(), Path(folder).expanduser()

    def check(self) -> None:
        """Raise an error for the first option that cannot be served."""
        self.settings.check()
        self.engine.check()
        self.machine.check()
        check_model(self.asked)
        if self.adapter is not None and not self.adapter[1].is_dir():
            raise RequestError(f"merge_adapter {self.adapter[1]}: there is no such folder", field="merge_adapter")


class ServeCommand(Command):
    """A command whose options may also come from variables and from a file, as if they had been typed in front."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = list(_flags(self.get_params(ctx)))
        given = {OLD_NAMES.get(name, name) for name in (word.partition("=")[0] for word in args)}
        file = _value_of("--config", args)
        found = gather(flags, given, os.environ, None if file is None else Path(file).expanduser())
        if _has_positional(args, {flag.name for flag in flags if flag.switch}):
            found = [each for each in found if each.flag.name != "--model"]
        return super().parse_args(ctx, [*(word for each in found for word in each.words()), *args])


def _flags(params: Sequence[Any]) -> Iterator[Flag]:
    for param in params:
        name = next((each for each in param.opts if each.startswith("--")), None)
        if name is not None and name not in ALONE:
            yield Flag(name, bool(getattr(param, "is_flag", False)), bool(getattr(param, "multiple", False)))


def _value_of(name: str, args: Sequence[str]) -> str | None:
    """What an option is given; the last of several."""
    value = None
    for word, after in zip(args, [*args[1:], None], strict=True):
        if word == name:
            value = after
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def _has_positional(args: Sequence[str], switches: set[str]) -> bool:
    """Whether a word is no option and no option's value."""
    switches = switches | {"--print-config", "--check", "--help", "-h"}
    value_of = False
    for word in args:
        if not value_of and not word.startswith("-"):
            return True
        value_of = not value_of and word.startswith("-") and "=" not in word and word not in switches
    return False


def printed(options: ServeOptions) -> str:
    """All settings as a file for ``--config``, a line each: what is left out as a comment, and no secret at all."""
    lines = [_line("model", options.model or options.named), _line("merge-adapter", options.merge_adapter)]
    for group in (options.settings, options.engine, options.machine):
        for each in fields(group):
            value, name = getattr(group, each.name), option_name(each.name).removeprefix("--")
            if each.name in ServerSettings.SECRET and value:
                lines.append(f"# {name}: {len(value)} not shown")
            else:
                lines.append(_line(name, list(value) if isinstance(value, tuple) else value))
    return "".join(line + "\n" for line in lines)


def _line(name: str, value: Any) -> str:
    if value is None or value == []:
        return f"# {name}:"
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"

"""What options are called: one name for one thing in all commands, and the names that a thing had before."""

import re
from collections.abc import Sequence
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

from modelwright.cli.streams import as_text, is_text
from modelwright.configs.limits import ENGINE
from modelwright.errors import RequestError, UserError

OLD_NAMES = {
    "--max-new-tokens": "--max-tokens",
    "--chunk-size": "--token-budget",
    "--block-size": "--page-size",
    "--batch": "--requests",
}
"""Names that are still understood, wherever there is the option that is called so now; no help shows them."""
UNLIKE = {"as_json": "--json", "evaluate": "--eval", "devices": "--device"}
"""Options that are called otherwise than their fields."""

PICTURES = ("first", "second")
"""Arguments that may be the path of a picture, whose bytes need not be UTF-8."""
KINDS = {"integer": "a whole number", "float": "a number", "number": "a number"}
"""Types of options whose values are numbers, by words of typer's messages, which differ among its releases."""


class Command(TyperCommand):
    """A command that also understands the old names of its options, and takes no bytes that are no text."""

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        known = parser._long_opt
        for old, name in OLD_NAMES.items():
            if name in known:
                known.setdefault(old, known[name])
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)  # which parsing takes apart
        try:
            return super().parse_args(ctx, args)
        except BadParameter as error:
            kind = next((kind for word, kind in KINDS.items() if word in error.message), None)
            if kind is None or error.param is None or not error.param.opts:
                raise
            called = max(error.param.opts, key=len)
            raise RequestError(f"{called} must be {kind}{_got(given, {*error.param.opts, *_old(called)})}") from error

    def invoke(self, ctx: Any) -> Any:
        for param in self.get_params(ctx):
            if param.name in PICTURES:
                continue
            value = ctx.params.get(param.name)
            if isinstance(value, str):
                ctx.params[param.name] = value = as_text(value)
            words = value if isinstance(value, list | tuple) else [value]
            for word in words:
                if isinstance(word, str) and not is_text(word):
                    called = param.metavar if param.param_type_name == "argument" else option_name(str(param.name))
                    raise RequestError(f"{called} must be text in UTF-8, got {word!r:.80}")
        return super().invoke(ctx)


def _old(name: str) -> list[str]:
    return [old for old, new in OLD_NAMES.items() if new == name]


def _got(words: Sequence[str], names: set[str]) -> str:
    """What stands behind an option of one of the names, as the end of a sentence; empty where it is not found."""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        name, mark, value = word.partition("=")
        if name in names:
            return f", got {value if mark else after!r:.80}"
    return ""


def option_name(field: str, typed: Sequence[str] = ()) -> str:
    """What the field of a library's error is called on the command line, by its old name where that was `typed`."""
    name = UNLIKE.get(field, f"--{field.replace('_', '-')}")
    words = {word.partition("=")[0] for word in typed}
    return next((old for old, new in OLD_NAMES.items() if new == name and old in words), name)


def in_options(error: UserError, typed: Sequence[str] = ()) -> str:
    """The sentence of an error in which a field is called as its option is."""
    sentence = " ".join(str(error).split())
    if error.field is None:
        return sentence
    rest = sentence.removeprefix(error.field)
    if error.field in ENGINE:  # a rule between two of them names the other with its value in brackets
        named = re.compile(rf"\b({'|'.join(ENGINE)})(?= \()")
        rest = named.sub(lambda found: option_name(found[1], typed), rest)
    return option_name(error.field, typed) + rest

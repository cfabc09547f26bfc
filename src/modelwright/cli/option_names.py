"""What options are called: one name for one thing in all commands, and the names that a thing had before."""

import re
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from modelwright.configs.limits import ENGINE
from modelwright.errors import UserError

OLD_NAMES = {
    "--max-new-tokens": "--max-tokens",
    "--chunk-size": "--token-budget",
    "--block-size": "--page-size",
    "--batch": "--requests",
}
"""Names that are still understood, wherever there is the option that is called so now; no help shows them."""
UNLIKE = {"as_json": "--json", "evaluate": "--eval", "devices": "--device"}
"""Options that are called otherwise than their fields."""


class Command(TyperCommand):
    """A command that also understands the old names of its options."""

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)
        known = parser._long_opt
        for old, name in OLD_NAMES.items():
            if name in known:
                known.setdefault(old, known[name])
        return parser


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

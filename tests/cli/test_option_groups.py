"""Options written as fields of dataclasses: what typer sees of them, and what a command is given."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from modelwright.cli.option_groups import command


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, typer.Option(help="How large.")] = 3
    names: Annotated[list[str] | None, typer.Option("--name")] = None


@dataclass(frozen=True)
class Outer:
    what: Annotated[str, typer.Argument()]
    inner: Inner = field(default_factory=Inner)
    loud: Annotated[bool, typer.Option("--loud")] = False


@pytest.fixture
def run():
    seen: list[Outer] = []

    @command
    def act(options: Outer) -> None:
        """Do it."""
        seen.append(options)

    app = typer.Typer()
    app.command()(act)

    def call(*args: str):
        done = CliRunner().invoke(app, args)
        return done, seen[-1] if seen else None

    return call


def test_groups_within_groups_are_options_of_the_command(run):
    assert run("it")[1] == Outer("it", Inner(3, None), False)
    assert run("it", "--size", "5", "--name", "a", "--name", "b", "--loud")[1] == Outer(
        "it", Inner(5, ["a", "b"]), True
    )


def test_what_has_no_default_is_required_and_types_are_checked(run):
    assert run()[0].exit_code == 2
    assert run("it", "--size", "large")[0].exit_code == 2


def test_help_is_the_commands_own(run):
    shown = run("--help")[0].output
    assert "Do it." in shown and "--size" in shown and "How large." in shown

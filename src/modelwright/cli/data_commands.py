"""The options of ``modelwright data``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli import examples
from modelwright.cli.option_names import Command

data = typer.Typer(help="Look at the rows of a run, and prepare them.", no_args_is_help=True)

RunFile = Annotated[Path, Argument(help="A run file (a YAML).", metavar="RUN.yaml", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    Argument(help="Keys of the run with other values, like data.seq_length=512.", metavar="[KEY=VALUE]..."),
]


@data.command(cls=Command, epilog=examples.shown(examples.DATA_SHOW))
def show(
    run: RunFile,
    overrides: Overrides = None,
    rows: Annotated[int, Option("-n", "--rows", help="How many rows.", min=1)] = 3,
    held_out: Annotated[bool, Option("--eval", help="Of data.eval in place of data.train.")] = False,
) -> None:
    """Print rows as the model will see them: documents, text, what is learned of it, pictures and padding."""
    from modelwright.cli.data import show_data

    show_data(run, overrides or [], rows, held_out)


@data.command(cls=Command, epilog=examples.shown(examples.DATA_PREPARE))
def prepare(run: RunFile, overrides: Overrides = None) -> None:
    """Make the tokens of all rows once, into data.cache, where training finds them."""
    from modelwright.cli.data import prepare_data

    prepare_data(run, overrides or [])

"""The ``modelwright`` command, put together from its commands, and how its errors end; their options are theirs."""

import io
import sys
from typing import Annotated

import typer
from typer import Option

import modelwright
from modelwright.cli import examples
from modelwright.cli.engine_commands import bench, chat, complete_image, generate
from modelwright.cli.model_commands import env, models, plan
from modelwright.cli.option_names import Command, in_options
from modelwright.cli.weight_commands import convert, export, quantize
from modelwright.errors import RequestFailed, UserError
from modelwright.ops.backends.switch import SwitchError

USER_ERROR = 2
"""The exit status of a request that cannot be served as it was made; also that of a wrong option."""

FAILED = 1
"""The exit status of a request that was begun and could not be finished."""

app = typer.Typer(
    help="From a config to a running model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # what we did not foresee keeps its traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's error is one sentence on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an answer may hold what the terminal cannot show
    try:
        app(prog_name="modelwright")  # also where it is run by python -m modelwright
    except UserError as error:
        print(f"modelwright: {in_options(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(FAILED if isinstance(error, RequestFailed) else USER_ERROR)
    except SwitchError as error:
        print(f"modelwright: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"modelwright {modelwright.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """From a config to a running model."""


COMMANDS = {
    chat: examples.CHAT,
    generate: examples.GENERATE,
    complete_image: examples.COMPLETE_IMAGE,
    models: examples.MODELS,
    convert: examples.CONVERT,
    quantize: examples.QUANTIZE,
    plan: examples.PLAN,
    env: examples.ENV,
}
for command, lines in COMMANDS.items():
    app.command(cls=Command, epilog=examples.shown(lines))(command)
app.add_typer(bench, name="bench")
app.add_typer(export, name="export")


if __name__ == "__main__":
    main()

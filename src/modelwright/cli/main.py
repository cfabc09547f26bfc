"""The ``modelwright`` command, put together from its commands, and how its errors end; their options are theirs."""

import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from typer import Option

import modelwright
from modelwright.cli import examples
from modelwright.cli.checkpoint_commands import checkpoint
from modelwright.cli.data_commands import data
from modelwright.cli.engine_commands import bench, chat, complete_image, generate, serve
from modelwright.cli.evaluate_command import evaluate
from modelwright.cli.exit_status import USER_ERROR, status_of
from modelwright.cli.libraries import tell_libraries
from modelwright.cli.model_commands import env, models, plan
from modelwright.cli.option_names import Command, in_options
from modelwright.cli.serve_options import ServeCommand
from modelwright.cli.streams import discard_stdout, flush_stdout, open_streams, sentence
from modelwright.cli.training_commands import train
from modelwright.cli.weight_commands import convert, export, quantize
from modelwright.errors import UserError
from modelwright.ops.backends.switch import SwitchError

app = typer.Typer(
    help="From a config to a running model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # what we did not foresee keeps its traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's error, or what the system refuses, is one sentence on stderr."""
    tell_libraries()
    open_streams()
    try:
        try:
            app(prog_name="modelwright")  # also where it is run by python -m modelwright
        finally:
            flush_stdout()
    except UserError as error:
        _end(in_options(error, sys.argv[1:]), status_of(error))
    except SwitchError as error:
        _end(str(error))
    except OSError as error:
        discard_stdout()
        _end(sentence(error), status_of(error))


def _end(reason: str, status: int = USER_ERROR) -> NoReturn:
    with suppress(OSError, ValueError):  # stderr may be full or closed, too
        print(f"modelwright: {reason}", file=sys.stderr, flush=True)
    sys.exit(status)


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
    serve: examples.SERVE,
    complete_image: examples.COMPLETE_IMAGE,
    models: examples.MODELS,
    convert: examples.CONVERT,
    quantize: examples.QUANTIZE,
    evaluate: examples.EVALUATE,
    plan: examples.PLAN,
    train: examples.TRAIN,
    env: examples.ENV,
}
for command, lines in COMMANDS.items():
    app.command(cls=ServeCommand if command is serve else Command, epilog=examples.shown(lines))(command)
app.add_typer(bench, name="bench")
app.add_typer(export, name="export")
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(data, name="data")


if __name__ == "__main__":
    main()

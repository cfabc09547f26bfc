"""The options of ``modelwright checkpoint``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli import examples
from modelwright.cli.option_names import Command
from modelwright.cli.quick_checks import check_choice, check_place_to_make
from modelwright.cli.weight_commands import ShardSize

FORMATS = ("stacked", "official")
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("hf", "mindformers")

checkpoint = typer.Typer(help="Look at a run's checkpoints, or write one for others.", no_args_is_help=True)
Output = Annotated[
    Path,
    Argument(
        help="The `output` of a run, its folder of checkpoints, or one checkpoint.",
        metavar="OUTPUT",
        show_default=False,
    ),
]
Step = Annotated[int | None, Argument(help="The step. Left out: see above.", metavar="STEP", show_default=False)]


@checkpoint.command("ls", cls=Command, epilog=examples.shown(examples.CHECKPOINT_LS))
def list_checkpoints(
    output: Output, as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False
) -> None:
    """List a run's checkpoints in the order of writing; files are not read."""
    from modelwright.cli.checkpoint import run_list

    run_list(output, as_json)


@checkpoint.command("verify", cls=Command, epilog=examples.shown(examples.CHECKPOINT_VERIFY))
def verify(output: Output, step: Step = None) -> None:
    """Compare every file with the hash that was written: of one step, or of all."""
    from modelwright.cli.checkpoint import run_verify

    run_verify(output, step)


@checkpoint.command("export", cls=Command, epilog=examples.shown(examples.CHECKPOINT_EXPORT))
def export(
    output: Output,
    out: Annotated[Path, Argument(help="The folder to make; it must not hold anything yet.", metavar="OUT")],
    step: Step = None,
    to: Annotated[str, Option(help="hf, the official folder, or mindformers.", metavar="LAYOUT")] = "hf",
    dtype: Annotated[
        str | None,
        Option(help="float32, bfloat16 or float16. Left out: the run's model.dtype.", show_default=False),
    ] = None,
    format: Annotated[
        str | None,
        Option(
            help="Of a run with LoRA: stacked, as peft writes adapters, or official, a pair for each expert. Left out: "
            "as the run says.",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[bool, Option("--merge", help="Of a run with LoRA: the whole model, with it folded in.")] = False,
    source: Annotated[
        str | None,
        Option(
            help="The model that the run began with, where it is no longer where the run found it.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Write the last whole checkpoint, or that of a step, as a folder that other programs load."""
    check_place_to_make(out)
    check_choice("to", to, LAYOUTS)
    check_choice("dtype", dtype, DTYPES)
    check_choice("format", format, FORMATS)

    from modelwright.cli.checkpoint import ExportOptions, run_export

    form = "merged" if merge else format
    run_export(ExportOptions(output, out, step, to, dtype, form, source, max_shard_size))

"""The options of ``modelwright train``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from modelwright.errors import ConfigError


def train(
    run: Annotated[
        Path,
        Argument(help="A run file, ours or MindFormers' (a YAML).", metavar="RUN.yaml", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        Argument(help="Keys of the run with other values, like optimizer.lr=1e-4.", metavar="[KEY=VALUE]..."),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything, print the plan, and train and write nothing.")
    ] = False,
    ranks: Annotated[
        int | None, Option(help="Plan for so many ranks, with --dry-run.", metavar="N", min=1, show_default=False)
    ] = None,
    resume: Annotated[
        str | None,
        Option(
            help="auto goes on from the newest checkpoint of the output that verifies, none begins anew, a path names "
            "a checkpoint. Left out: as the run says, which is auto.",
            metavar="auto|none|PATH",
            show_default=False,
        ),
    ] = None,
    nproc: Annotated[int, Option(help="Processes to start on this machine.", metavar="N", min=1)] = 1,
) -> None:
    """Train or fine-tune a model as a run file says."""
    if nproc > 1:
        raise ConfigError(
            f"nproc ({nproc}) starts several ranks, and the trainer has one so far: leave --nproc out", field="nproc"
        )
    if ranks is not None and not dry_run:
        raise ConfigError(f"ranks ({ranks}) says what to plan for, so it needs --dry-run", field="ranks")

    from modelwright.cli.train import TrainOptions, run_train

    code = run_train(TrainOptions(run, tuple(overrides or ()), dry_run, ranks or 1, resume))
    if code:
        raise Exit(code)

"""The options of ``modelwright models``, ``plan`` and ``env``; their work is imported when they are chosen."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from modelwright.cli import completions
from modelwright.cli.plan_options import PlanOptions
from modelwright.cli.quick_checks import is_on_hub


def models(
    as_json: Annotated[bool, Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List the models that ship inside the package."""
    from modelwright.cli.models import list_models

    list_models(as_json)


def plan(
    config: Annotated[
        str,
        Argument(
            help="A name from `modelwright models`, a folder, a config.json, a MindFormers YAML, or a hub id like "
            "org/name, whose config alone is fetched.",
            metavar="MODEL",
            autocompletion=completions.models,
            show_default=False,
        ),
    ],
    context: Annotated[
        int | None,
        Option(help="Tokens of each sequence. Left out: 4096, or the model's own where it is shorter.", metavar="N"),
    ] = None,
    batch: Annotated[int | None, Option(help="Sequences at once, on each data-parallel rank.", metavar="N")] = None,
    dtype: Annotated[
        str | None, Option(help="float32, bfloat16 or float16. Left out: the config's.", metavar="TYPE")
    ] = None,
    kv_dtype: Annotated[str | None, Option(help="The cache's type; also fp8 or int8.", metavar="TYPE")] = None,
    quant: Annotated[str | None, Option(help="Quantized weights: fp8, int8 or int4.", metavar="KIND")] = None,
    image: Annotated[str | None, Option(help="A picture in each sequence, in pixels.", metavar="WxH")] = None,
    device: Annotated[
        str | None, Option(help="Memory of a device and how many there are, like 24GiB or 80GB,8.", metavar="SIZE[,N]")
    ] = None,
    train: Annotated[bool, Option("--train", help="Plan training instead of serving.")] = False,
    optimizer: Annotated[
        str | None, Option(help="adamw, adamw8bit, lion or sgd, with --train.", metavar="NAME")
    ] = None,
    recompute: Annotated[
        bool | None, Option(help="Recompute activations in the backward pass, with --train.", show_default=False)
    ] = None,
    attention: Annotated[
        str | None, Option(help="fused, or eager, which writes scores out. Left out: the config's.", metavar="KIND")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of tables.")] = False,
    plot: Annotated[Path | None, Option(help="Draw the memory.", metavar="OUT.svg")] = None,
) -> None:
    """Say what a model costs and whether it fits, from its config alone."""
    options = PlanOptions(
        config=config,
        context=context,
        batch=batch,
        dtype=dtype,
        kv_dtype=kv_dtype,
        quant=quant,
        image=image,
        device=device,
        train=train,
        optimizer=optimizer,
        recompute=recompute,
        attention=attention,
        as_json=as_json,
        plot=plot,
    )
    options.check()
    fetched = None
    if is_on_hub(config):
        from modelwright.cli.hub_config import fetch_config

        fetched = fetch_config(config)

    from modelwright.cli.plan import run_plan

    run_plan(options, fetched)


def env(
    check: Annotated[
        bool, Option("--check", help="Compare every kernel that this machine uses with its reference.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Say what this machine has, and which backend computes each operation here and why.

    With --check the exit status is 1 where a kernel differs from its reference by more than is allowed.
    """
    from modelwright.cli.env import run_env

    raise Exit(run_env(check, as_json))

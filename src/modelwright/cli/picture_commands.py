"""The options of ``modelwright complete-image``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli.engine_commands import Device, Dtype


def complete_image(
    picture: Annotated[
        Path | None,
        Argument(
            help="The picture whose top is kept; its middle is cut to the model's shape. --keep 0 needs none.",
            metavar="PICTURE",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            help="An ImageGPT: a name from `modelwright models`, a checkpoint folder, or a hub id like org/name. "
            "Left out: imagegpt-nano.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[float, Option(help="Share of the rows to keep, from the top, to the nearest whole row.")] = 0.5,
    samples: Annotated[int, Option("-n", "--samples", help="How many ways to complete it.", metavar="N")] = 4,
    output: Annotated[
        Path, Option("-o", "--output", help="Where to write the contact sheet.", metavar="OUT.png")
    ] = Path("completed.png"),
    temperature: Annotated[
        float, Option(help="0 takes the likeliest colour each time, more is wilder; 1 is what the model learned.")
    ] = 1.0,
    top_p: Annotated[float | None, Option(help="Sample from the likeliest colours of this total probability.")] = None,
    top_k: Annotated[int | None, Option(help="Sample from this many of the likeliest colours; 0 is all.")] = None,
    seed: Annotated[int | None, Option(help="The same seed gives the same sheet. Left out: drawn and told.")] = None,
    onnx: Annotated[
        Path | None,
        Option(
            help="Sample with onnxruntime alone, from a folder made by `modelwright export onnx`.", metavar="FOLDER"
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, Option("--json", help="Print one JSON object, with the samples' colours.")] = False,
    stats: Annotated[bool, Option("--stats", help="Say on stderr how many pixels, how fast, how much memory.")] = False,
) -> None:
    """Keep the top of a picture and let an ImageGPT draw the rest, several times over."""
    from modelwright.cli.complete_image_options import CompleteImageOptions
    from modelwright.cli.options import Sampling

    options = CompleteImageOptions(
        picture=picture,
        model=model,
        keep=keep,
        count=samples,
        output=output,
        sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
        onnx=onnx,
        dtype=dtype,
        device=device,
        as_json=as_json,
        stats=stats,
    )
    options.check()

    from modelwright.cli.complete_image import run_complete_image

    raise typer.Exit(run_complete_image(options))

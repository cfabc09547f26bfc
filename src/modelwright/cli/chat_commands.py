"""The options of ``modelwright chat``; its work is imported when it is chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli.engine_commands import Device, Dtype, TensorParallel


def chat(
    model: Annotated[
        str | None,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name. "
            "May be left out: vl2-nano then answers, and a lone argument that is none of these is the prompt.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Argument(
            help="The question; without it an interactive session starts (/help lists its commands).",
            metavar="PROMPT",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, Option(help="A picture to show; repeat for more.", metavar="PATH", show_default=False)
    ] = None,
    draw: Annotated[
        Path | None, Option(help="Write the last picture with the boxes of the answer.", metavar="OUT.png")
    ] = None,
    max_new_tokens: Annotated[int | None, Option(help="Longest answer, in tokens. Left out: 512.")] = None,
    temperature: Annotated[
        float | None,
        Option(help="0 takes the likeliest token, more is wilder. Left out: 1 with --top-p or --top-k, otherwise 0."),
    ] = None,
    top_p: Annotated[float | None, Option(help="Sample from the likeliest tokens of this total probability.")] = None,
    top_k: Annotated[int | None, Option(help="Sample from this many of the likeliest tokens; 0 is all.")] = None,
    repetition_penalty: Annotated[
        float | None, Option(help="Above 1 makes tokens seen already less likely. Left out: 1.")
    ] = None,
    seed: Annotated[int | None, Option(help="Makes sampling repeatable.")] = None,
    chunk_size: Annotated[
        int | None, Option(help="Read the prompt this many tokens at a time, to bound memory.", metavar="N")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    tensor_parallel: TensorParallel = 1,
    system: Annotated[str, Option(help="Instructions put before the conversation.", metavar="TEXT")] = "",
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of text.")] = False,
    stats: Annotated[bool, Option("--stats", help="Say on stderr how many tokens, how fast, how much memory.")] = False,
) -> None:
    """Ask a model about text and pictures, once or in a session."""
    from modelwright.cli.options import ChatOptions, Sampling, choose_model

    name, question = choose_model(model, prompt)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    options = ChatOptions(
        model=name,
        prompt=question,
        images=tuple(image or ()),
        draw=draw,
        sampling=sampling,
        chunk_size=chunk_size,
        dtype=dtype,
        device=device,
        tensor_parallel=tensor_parallel,
        system=system,
        as_json=as_json,
        stats=stats,
    )
    options.check()

    from modelwright.cli.chat import run_chat

    raise typer.Exit(run_chat(options))

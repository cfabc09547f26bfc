"""The ``modelwright`` command, its options and errors; a command's work is in a file imported when it is chosen."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import modelwright
from modelwright.cli.engine_commands import bench, generate
from modelwright.errors import CheckpointError, ConfigError, RequestError

USER_ERROR = 2
"""The exit status of a request that cannot be served as it was made; also that of a wrong option."""

app = typer.Typer(
    help="From a config to a running model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what we did not foresee keeps its traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's error is one sentence on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an answer may hold what the terminal cannot show
    try:
        app()
    except (ConfigError, CheckpointError, RequestError) as error:
        print(f"modelwright: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"modelwright {modelwright.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """From a config to a running model."""


@app.command()
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
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda, ...")] = "auto",
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
        system=system,
        as_json=as_json,
        stats=stats,
    )
    options.check()

    from modelwright.cli.chat import run_chat

    raise typer.Exit(run_chat(options))


app.command()(generate)
app.add_typer(bench, name="bench")


@app.command()
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
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, Option(help="auto, cpu, cuda, ...")] = "auto",
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


@app.command()
def models(
    as_json: Annotated[bool, Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List the models that ship inside the package."""
    from modelwright.cli.models import list_models

    list_models(as_json)


@app.command()
def convert(
    src: Annotated[
        str,
        Argument(
            help="A folder with MindFormers' YAML and safetensors weights (or the YAML itself), a Hugging Face folder, "
            "a name from `modelwright models`, or a hub id like org/name.",
            metavar="SRC",
            show_default=False,
        ),
    ],
    dst: Annotated[Path, Argument(help="The folder to make; it must not hold anything yet.", metavar="DST")],
    to: Annotated[
        str | None,
        Option(
            help="hf or mindformers. Left out: hf, that is the other layout for a MindFormers source and the same one "
            "for a Hugging Face source.",
            metavar="LAYOUT",
            show_default=False,
        ),
    ] = None,
    qkv_concat: Annotated[
        bool | None,
        Option(
            "--qkv-concat/--no-qkv-concat",
            help="Fuse the query, key, value and the gate, up projections of a MindFormers target, or keep them apart. "
            "Left out: as the config says.",
            show_default=False,
        ),
    ] = None,
    num_key_value_heads: Annotated[
        int | None,
        Option(help="Pool the key and value heads down to this many, by their mean.", metavar="K", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        Option(help="float32, bfloat16 or float16. Left out: each tensor keeps its own.", show_default=False),
    ] = None,
    max_shard_size: Annotated[str, Option(help="Largest weight file: 5GB, 200MiB or a number of bytes.")] = "5GB",
) -> None:
    """Turn a checkpoint into another layout, number type, file size or number of key heads."""
    from modelwright.cli.convert import ConvertOptions, run_convert

    run_convert(ConvertOptions(src, dst, to, qkv_concat, num_key_value_heads, dtype, max_shard_size))


@app.command()
def quantize(
    model: Annotated[
        str,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    out: Annotated[Path, Argument(help="The folder to make; it must not hold anything yet.", metavar="OUT")],
    method: Annotated[
        str, Option(help="int8, int4, or int8-dynamic, which rounds activations too.", metavar="METHOD")
    ] = "int8",
    group: Annotated[int, Option(help="Inputs that share an int4 scale: 32, 64 or 128.", metavar="N")] = 64,
    keep_head: Annotated[
        bool, Option("--keep-head/--no-keep-head", help="Leave the output head as it is, or quantize it too.")
    ] = True,
    evaluate: Annotated[
        Path | None,
        Option(
            "--eval",
            help="A text, or a .jsonl of objects with a text, to compare loss and perplexity on.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, Option(help="Where --eval runs: auto, cpu, cuda, ...")] = "auto",
    max_shard_size: Annotated[str, Option(help="Largest weight file: 5GB, 200MiB or a number of bytes.")] = "5GB",
) -> None:
    """Store a checkpoint's matrices as integers, and say what that changes."""
    from modelwright.cli.quantize import QuantizeOptions, run_quantize

    run_quantize(QuantizeOptions(model, out, method, group, keep_head, max_shard_size, evaluate, device))


@app.command()
def plan(
    config: Annotated[
        str,
        Argument(
            help="A name from `modelwright models`, a folder, a config.json, a MindFormers YAML, or a hub id like "
            "org/name, whose config alone is fetched.",
            metavar="CONFIG",
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
    from modelwright.cli.plan import PlanOptions, run_plan

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
    run_plan(options)


export = typer.Typer(help="Write a model for another runtime.", no_args_is_help=True)
app.add_typer(export, name="export")


@export.command("onnx")
def export_onnx(
    model: Annotated[
        str,
        Argument(
            help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        Argument(
            help="The folder to make; one that an export made before is replaced.", metavar="OUT", show_default=False
        ),
    ],
    dtype: Annotated[str, Option(help="float32 or float16.")] = "float32",
    opset: Annotated[int, Option(help="ONNX's version, 18 to 23.", metavar="N")] = 20,
    draws: Annotated[int, Option(help="How many drawn shapes to compare with PyTorch.", metavar="N")] = 12,
    seed: Annotated[int, Option(help="Of the drawn shapes and tokens.")] = 0,
) -> None:
    """Write ONNX graphs with the cache as inputs and outputs, compared with PyTorch before they appear."""
    from modelwright.cli.export import ExportOptions, run_export

    run_export(ExportOptions(model, out, dtype, opset, draws, seed))


if __name__ == "__main__":
    main()

"""The options of ``modelwright convert``, ``quantize`` and ``export``; their work is imported when they are chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli import examples
from modelwright.cli.option_names import Command
from modelwright.cli.options import Device, Model
from modelwright.cli.quick_checks import check_choice, check_device, check_model, check_place_to_make

LAYOUTS = ("hf", "mindformers", "gguf")
CONVERTED = ("float32", "bfloat16", "float16", "q8_0")
EXPORTED = ("float32", "float16")
METHODS = ("int8", "int4", "int8-dynamic")
ShardSize = Annotated[str, Option(help="Largest weight file: 5GB, 200MiB or a number of bytes.")]

export = typer.Typer(help="Write a model for another runtime.", no_args_is_help=True)


def convert(
    src: Annotated[
        str,
        Argument(
            help="A folder with MindFormers' YAML and safetensors weights (or the YAML itself), a Hugging Face folder, "
            "a GGUF file, a name from `modelwright models`, or a hub id like org/name.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    dst: Annotated[
        Path, Argument(help="The folder or the .gguf file to make; it must not be there yet.", metavar="OUT")
    ],
    to: Annotated[
        str | None,
        Option(
            help="hf, mindformers or gguf. Left out: gguf where OUT ends in .gguf, else hf, the other layout for a "
            "MindFormers source and the same one for a Hugging Face source.",
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
        Option(
            help="float32, bfloat16 or float16, and q8_0 in a GGUF file. Left out: each tensor keeps its own.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    allow_pickle: Annotated[
        bool,
        Option(
            "--allow-pickle",
            help="Read pytorch_model.bin where there are no safetensors: tensors alone, and nothing that it would run.",
        ),
    ] = False,
) -> None:
    """Turn a checkpoint into another layout, number type, file size or number of key heads."""
    check_model(src)
    check_place_to_make(dst)
    check_choice("to", to, LAYOUTS)
    check_choice("dtype", dtype, CONVERTED)

    from modelwright.cli.convert import ConvertOptions, run_convert

    run_convert(ConvertOptions(src, dst, to, qkv_concat, num_key_value_heads, dtype, max_shard_size, allow_pickle))


def quantize(
    model: Model,
    out: Annotated[Path, Argument(help="The folder to make; it must not hold anything yet.", metavar="OUT")],
    method: Annotated[
        str, Option(help="int8, int4, or int8-dynamic, which rounds activations too.", metavar="METHOD")
    ] = "int8",
    group: Annotated[
        int | None,
        Option(
            help="Inputs that share an int4 scale: 32, 64 or 128. Left out: 32.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    symmetric: Annotated[
        bool, Option("--symmetric", help="Leave out what int4 adds to the weights of a group beside its scale.")
    ] = False,
    keep_head: Annotated[
        bool, Option("--keep-head/--no-keep-head", help="Leave the output head as it is, or quantize it too.")
    ] = True,
    calibrate: Annotated[
        Path | None,
        Option(
            help="A text, or a .jsonl of prompts or messages as `generate` reads them: int4 is rounded by what "
            "the layers meet in it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        Option(
            "--eval",
            help="A text, or a .jsonl of objects with a text, to compare loss and perplexity on.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Store a checkpoint's matrices as integers, and say what that changes."""
    check_model(model)
    check_place_to_make(out)
    check_choice("method", method, METHODS)
    check_device(device)

    from modelwright.cli.quantize import QuantizeOptions, run_quantize

    options = (method, group, symmetric, keep_head, max_shard_size, calibrate, evaluate, device)
    run_quantize(QuantizeOptions(model, out, *options))


@export.command("onnx", cls=Command, epilog=examples.shown(examples.EXPORT_ONNX))
def export_onnx(
    model: Model,
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
    check_model(model)
    check_place_to_make(out)
    check_choice("dtype", dtype, EXPORTED)

    from modelwright.cli.export import ExportOptions, run_export

    run_export(ExportOptions(model, out, dtype, opset, draws, seed))

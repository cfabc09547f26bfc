"""The options of ``modelwright generate`` and ``modelwright bench``; their work is imported when they are chosen."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from modelwright.cli.bench_options import BenchOptions
from modelwright.cli.engine_options import EngineOptions

Model = Annotated[
    str,
    Argument(
        help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name.",
        metavar="MODEL",
        show_default=False,
    ),
]
MaxBatch = Annotated[int | None, Option(help="How many sequences run at once. Left out: 64.", metavar="N")]
BenchBatch = Annotated[
    int | None, Option(help="How many sequences run at once. Left out: as many as start together.", metavar="N")
]
TokenBudget = Annotated[
    int | None, Option(help="How many tokens a step computes at most. Left out: 2048.", metavar="N")
]
NumPages = Annotated[
    int | None, Option(help="Pages of the cache. Left out: as many as fit a quarter of the free memory.", metavar="N")
]
HostPages = Annotated[
    int | None,
    Option(help="Pages in host memory for what waits for a page of the cache. Left out: none.", metavar="N"),
]
BlockSize = Annotated[int | None, Option(help="Tokens in a page of the cache. Left out: 16.", metavar="N")]
TensorParallel = Annotated[
    int, Option(help="Processes that share the model, each on a GPU of its own or a part of the CPU.", metavar="N")
]
KvDtype = Annotated[
    str | None, Option(help="auto, or int8 to keep keys and values in less room. Left out: auto.", metavar="TYPE")
]
Backend = Annotated[
    str | None,
    Option(
        help="auto, eager, record to repeat recorded decodes on a CPU, or cudagraph on a GPU. Left out: auto.",
        metavar="NAME",
    ),
]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, ...")]
BenchInput = Annotated[
    Path | None,
    Option(
        "--input",
        help="Prompts in JSON lines, as `generate` takes them, instead of random tokens; their sampling fields are "
        "not used.",
        metavar="FILE",
        show_default=False,
    ),
]
InputLen = Annotated[int, Option(help="Tokens of a random prompt.", metavar="N")]
OutputLen = Annotated[int, Option(help="Tokens of each answer, whatever they are.", metavar="N")]
Warmup = Annotated[int, Option(help="Rounds before those that are measured.", metavar="N")]
Repeats = Annotated[int, Option(help="Rounds that are measured.", metavar="N")]
Seed = Annotated[int, Option(help="Of the random prompts and arrivals.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]

bench = typer.Typer(help="Measure a model in the engine.", no_args_is_help=True)


def generate(
    model: Model,
    source: Annotated[
        Path,
        Option(
            "-i",
            "--input",
            help='JSON lines with "prompt", "messages" or "prompt_token_ids", and sampling fields; - is stdin.',
            metavar="FILE",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Option(
            "-o",
            "--output",
            help="Where the answers go, a JSON line each, in order; what is there already is kept. - is stdout.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    overwrite: Annotated[bool, Option("--overwrite", help="Start anew instead of keeping what is there.")] = False,
    max_tokens: Annotated[int | None, Option(help="Longest answer, in tokens. Left out: 512.", metavar="N")] = None,
    temperature: Annotated[
        float | None,
        Option(help="0 takes the likeliest token, more is wilder. Left out: 1 with --top-p or --top-k, otherwise 0."),
    ] = None,
    top_p: Annotated[float | None, Option(help="Sample from the likeliest tokens of this total probability.")] = None,
    top_k: Annotated[int | None, Option(help="Sample from this many of the likeliest tokens; 0 is all.")] = None,
    seed: Annotated[int | None, Option(help="Makes sampling repeatable, line by line.")] = None,
    stop: Annotated[
        list[str] | None, Option(help="A text that ends an answer; repeat for more.", metavar="TEXT")
    ] = None,
    max_batch: MaxBatch = None,
    token_budget: TokenBudget = None,
    kv_dtype: KvDtype = None,
    num_pages: NumPages = None,
    block_size: BlockSize = None,
    host_pages: HostPages = None,
    tensor_parallel: TensorParallel = 1,
    backend: Backend = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer a file of prompts, many at once; sampling options are defaults for lines that do not say."""
    from modelwright.cli.generate_options import GenerateOptions
    from modelwright.cli.options import Sampling

    options = GenerateOptions(
        model=model,
        input=source,
        output=output,
        overwrite=overwrite,
        sampling=Sampling(max_tokens, temperature, top_p, top_k, seed=seed),
        stop=tuple(stop or ()),
        engine=EngineOptions(
            max_batch, token_budget, num_pages, block_size, kv_dtype, tensor_parallel, host_pages, backend
        ),
        dtype=dtype,
        device=device,
    )
    options.check()

    from modelwright.cli.generate import run_generate

    raise typer.Exit(run_generate(options))


@bench.command()
def latency(
    model: Model,
    source: BenchInput = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    batch: Annotated[int, Option(help="Requests that start together.", metavar="N")] = 1,
    warmup: Warmup = 1,
    repeats: Repeats = 5,
    seed: Seed = 0,
    max_batch: BenchBatch = None,
    token_budget: TokenBudget = None,
    kv_dtype: KvDtype = None,
    num_pages: NumPages = None,
    block_size: BlockSize = None,
    host_pages: HostPages = None,
    tensor_parallel: TensorParallel = 1,
    backend: Backend = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time requests that start together: the first token, each further one, the whole."""
    options = BenchOptions(
        kind="latency",
        model=model,
        input=source,
        input_len=input_len,
        output_len=output_len,
        requests=batch,
        warmup=warmup,
        repeats=repeats,
        seed=seed,
        engine=EngineOptions(
            max_batch, token_budget, num_pages, block_size, kv_dtype, tensor_parallel, host_pages, backend
        ),
        dtype=dtype,
        device=device,
        as_json=as_json,
    )
    _bench(options)


@bench.command()
def throughput(
    model: Model,
    source: BenchInput = None,
    input_len: InputLen = 128,
    output_len: OutputLen = 64,
    requests: Annotated[int, Option(help="Requests of a round.", metavar="N")] = 64,
    request_rate: Annotated[
        float | None,
        Option(help="How many come in a second, at random times. Left out: all at once.", metavar="R"),
    ] = None,
    warmup: Warmup = 1,
    repeats: Repeats = 1,
    seed: Seed = 0,
    max_batch: MaxBatch = None,
    token_budget: TokenBudget = None,
    kv_dtype: KvDtype = None,
    num_pages: NumPages = None,
    block_size: BlockSize = None,
    host_pages: HostPages = None,
    tensor_parallel: TensorParallel = 1,
    backend: Backend = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time many requests, all at once or at a rate: tokens a second, and how long each waited."""
    options = BenchOptions(
        kind="throughput",
        model=model,
        input=source,
        input_len=input_len,
        output_len=output_len,
        requests=requests,
        request_rate=request_rate,
        warmup=warmup,
        repeats=repeats,
        seed=seed,
        engine=EngineOptions(
            max_batch, token_budget, num_pages, block_size, kv_dtype, tensor_parallel, host_pages, backend
        ),
        dtype=dtype,
        device=device,
        as_json=as_json,
    )
    _bench(options)


def _bench(options: BenchOptions) -> None:
    options.check()

    from modelwright.cli.bench import run_bench

    raise typer.Exit(run_bench(options))

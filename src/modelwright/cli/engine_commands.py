"""The commands that compute with a model; each imports its work when chosen, after its options are checked."""

import typer

from modelwright.cli import examples
from modelwright.cli.bench_options import BenchOptions, LatencyOptions, ThroughputOptions
from modelwright.cli.chat_options import ChatOptions
from modelwright.cli.complete_image_options import CompleteImageOptions
from modelwright.cli.console import write
from modelwright.cli.generate_options import GenerateOptions
from modelwright.cli.option_groups import command
from modelwright.cli.option_names import Command
from modelwright.cli.quick_checks import check_packages
from modelwright.cli.serve_options import SERVE_PACKAGES, ServeOptions, printed

bench = typer.Typer(help="Measure a model in the engine.", no_args_is_help=True)


@command
def chat(options: ChatOptions) -> None:
    """Ask a model about text and pictures, once or in a session."""
    options.check()

    from modelwright.cli.chat import run_chat

    raise typer.Exit(run_chat(options))


@command
def generate(options: GenerateOptions) -> None:
    """Answer a file of prompts, many at once; sampling options are defaults for lines that do not say."""
    options.check()

    from modelwright.cli.generate import run_generate

    raise typer.Exit(run_generate(options))


@command
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP as OpenAI's API: chat, completions, pictures with boxes, tools, schemas."""
    if options.print_config:
        write(printed(options))
        return
    options.check()
    check_packages(SERVE_PACKAGES, "serve")

    from modelwright.cli.serve import run_serve

    raise typer.Exit(run_serve(options))


@command
def complete_image(options: CompleteImageOptions) -> None:
    """Keep the top of a picture and let an ImageGPT draw the rest, several times over."""
    options.check()

    from modelwright.cli.complete_image import run_complete_image

    raise typer.Exit(run_complete_image(options))


@command
def latency(options: LatencyOptions) -> None:
    """Time requests that start together: the first token, each further one, the whole."""
    _bench(options)


@command
def throughput(options: ThroughputOptions) -> None:
    """Time many requests, all at once or at a rate: tokens a second, and how long each waited."""
    _bench(options)


for measure, lines in ((latency, examples.LATENCY), (throughput, examples.THROUGHPUT)):
    bench.command(cls=Command, epilog=examples.shown(lines))(measure)


def _bench(options: BenchOptions) -> None:
    options.check()

    from modelwright.cli.bench import run_bench

    raise typer.Exit(run_bench(options))

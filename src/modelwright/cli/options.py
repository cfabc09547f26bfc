"""The options that several commands share, checked before anything heavy is imported; ranges are `configs.limits`'."""

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

from typer import Argument, Option

from modelwright.cli import completions
from modelwright.cli.quick_checks import DTYPES, check_choice, check_device
from modelwright.configs.limits import ENGINE, SAMPLING, check_engine, check_sampling
from modelwright.errors import RequestError

Model = Annotated[
    str,
    Argument(
        help="A name from `modelwright models`, a checkpoint folder, a GGUF file, or a hub id like org/name.",
        metavar="MODEL",
        show_default=False,
        autocompletion=completions.models,
    ),
]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16, float16 or float64.", autocompletion=completions.dtypes)]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, ...", autocompletion=completions.devices)]
TensorParallel = Annotated[
    int, Option(help="Processes that share the model, each on a GPU of its own or a part of the CPU.", metavar="N")
]
ChatTemplate = Annotated[
    str | None,
    Option(
        "--chat-template",
        help="A Jinja file that says how messages are printed, or the name of one of the tokenizer's templates. "
        "Left out: the tokenizer's own.",
        metavar="FILE",
        show_default=False,
    ),
]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]
MOST_RANKS = max(16, 4 * (os.cpu_count() or 1))
"""Processes that are started at most: more than any machine has GPUs, and than have a use for its CPUs."""
WITH_SAMPLING = "Left out: 1 with --top-p, --top-k or --min-p, otherwise 0."


def sampling_option(field: str, left_out: str = "", *names: str) -> Any:
    """The option of a field of `SamplingParams`."""
    return Option(*names, help=f"{SAMPLING[field].about} {left_out}".strip())


def engine_option(field: str, left_out: str, metavar: str | None = "N", *names: str) -> Any:
    """The option of a field of `EngineConfig`."""
    return Option(*names, help=f"{ENGINE[field].about} Left out: {left_out}.", metavar=metavar)


Temperature = Annotated[float | None, sampling_option("temperature", WITH_SAMPLING)]
TopP = Annotated[float | None, sampling_option("top_p")]
TopK = Annotated[int | None, sampling_option("top_k")]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, by the names of `SamplingParams`; None is an option that was not given."""

    PANEL: ClassVar[str] = "Answers"

    max_tokens: Annotated[int | None, sampling_option("max_tokens", "Left out: 512.")] = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: Annotated[float | None, sampling_option("min_p")] = None
    repetition_penalty: Annotated[float | None, sampling_option("repetition_penalty", "Left out: 1.")] = None
    presence_penalty: Annotated[float | None, sampling_option("presence_penalty", "Left out: 0.")] = None
    frequency_penalty: Annotated[float | None, sampling_option("frequency_penalty", "Left out: 0.")] = None
    stop: Annotated[list[str] | None, Option(help="A text that ends an answer; repeat for more.", metavar="TEXT")] = (
        None
    )
    seed: Annotated[int | None, sampling_option("seed")] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of `SamplingParams`."""
        given = _given(self)
        stop = given.pop("stop", None)
        return given | ({"stop": tuple(stop)} if stop else {})

    def check(self) -> None:
        """Raise a RequestError for the first option out of its range."""
        check_sampling(self.given())
        if "" in (self.stop or ()):
            raise RequestError("stop must not be empty", field="stop")


@dataclass(frozen=True)
class ChatEngine:
    """The limits of an engine that serves one conversation, by the names of `EngineConfig`; None was not given."""

    PANEL: ClassVar[str] = "Engine"

    token_budget: Annotated[int | None, engine_option("token_budget", "2048; 512 in chat, for several in serve")] = None
    max_context: Annotated[int | None, engine_option("max_context", "as many as the model reads")] = None
    kv_dtype: Annotated[str | None, engine_option("kv_dtype", "auto", "TYPE")] = None
    num_pages: Annotated[int | None, engine_option("num_pages", "as many as fit a quarter of the free memory")] = None
    page_size: Annotated[int | None, engine_option("page_size", "16")] = None
    backend: Annotated[str | None, engine_option("backend", "auto", "NAME")] = None
    batch_invariant: Annotated[
        bool, Option("--batch-invariant", help="Give the same answers to the last bit whatever runs beside them.")
    ] = False

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of `EngineConfig`."""
        given = _given(self)
        return given if given.pop("batch_invariant") is False else given | {"batch_invariant": True}

    def check(self) -> None:
        """Raise a ConfigError for the first option out of its range."""
        check_engine(self.given())


@dataclass(frozen=True)
class EngineOptions(ChatEngine):
    """The limits of an engine that serves many requests."""

    max_batch: Annotated[int | None, engine_option("max_batch", "64")] = None
    host_pages: Annotated[int | None, engine_option("host_pages", "none")] = None


@dataclass(frozen=True)
class Place:
    """Where a model is computed, and in which numbers."""

    PANEL: ClassVar[str] = "Machine"

    dtype: Dtype = "auto"
    device: Device = "auto"

    def check(self) -> None:
        """Raise a ConfigError for a type or a device that there is not."""
        check_choice("dtype", self.dtype, DTYPES)
        check_device(self.device)


@dataclass(frozen=True)
class Machine(Place):
    """The same, and by how many processes."""

    tensor_parallel: TensorParallel = 1

    def check(self) -> None:
        """Raise an error for the first option that cannot be served."""
        super().check()
        require_at_least(1, tensor_parallel=self.tensor_parallel)
        require_at_most(MOST_RANKS, tensor_parallel=self.tensor_parallel)


def require_at_least(least: int, **values: int | None) -> None:
    """Raise a RequestError for the first of the options that is below `least`; None, one that is left out, passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise RequestError(f"{name} must be at least {least}, got {value}", field=name)


def require_at_most(most: int, **values: int | None) -> None:
    """Raise a RequestError for the first of the options that is above `most`; None, one that is left out, passes."""
    for name, value in values.items():
        if value is not None and value > most:
            raise RequestError(f"{name} must be at most {most}, got {value}", field=name)


def _given(options: Any) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None}

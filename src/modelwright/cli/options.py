"""The options that several commands share, checked before anything heavy is imported; ranges are `configs.limits`'."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from typer import Argument, Option

from modelwright.configs.limits import ENGINE, SAMPLING, check_engine, check_sampling
from modelwright.errors import RequestError, UserError

NAMES = {"max_tokens": "--max-new-tokens", "page_size": "--block-size"}
"""Options that are called otherwise than their fields."""

Model = Annotated[
    str,
    Argument(
        help="A name from `modelwright models`, a checkpoint folder, or a hub id like org/name.",
        metavar="MODEL",
        show_default=False,
    ),
]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, ...")]
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
WITH_SAMPLING = "Left out: 1 with --top-p or --top-k, otherwise 0."


def option_name(field: str) -> str:
    """What the field of a library's error is called on the command line."""
    return NAMES.get(field, f"--{field.replace('_', '-')}")


def in_options(error: UserError) -> str:
    """The sentence of an error in which a field is called as its option is."""
    sentence = " ".join(str(error).split())
    if error.field is None:
        return sentence
    return option_name(error.field) + sentence.removeprefix(error.field)


def sampling_option(field: str, left_out: str = "", *names: str) -> Any:
    """The option of a field of `SamplingParams`."""
    return Option(*names, help=f"{SAMPLING[field].about} {left_out}".strip())


def engine_option(field: str, left_out: str, metavar: str | None = "N", *names: str) -> Any:
    """The option of a field of `EngineConfig`."""
    return Option(*names, help=f"{ENGINE[field].about} Left out: {left_out}.", metavar=metavar)


MaxTokens = Annotated[int | None, sampling_option("max_tokens", "Left out: 512.", "--max-new-tokens", "--max-tokens")]
Temperature = Annotated[float | None, sampling_option("temperature", WITH_SAMPLING)]
TopP = Annotated[float | None, sampling_option("top_p")]
TopK = Annotated[int | None, sampling_option("top_k")]
Seed = Annotated[int | None, sampling_option("seed")]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, by the names of `SamplingParams`; None is an option that was not given."""

    max_tokens: MaxTokens = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of `SamplingParams`."""
        return _given(self)

    def check(self) -> None:
        """Raise a RequestError for the first option out of its range."""
        check_sampling(self.given())


@dataclass(frozen=True)
class EngineOptions:
    """The limits of an engine, by the names of `EngineConfig`; None is an option that was not given."""

    max_batch: Annotated[int | None, engine_option("max_batch", "64")] = None
    token_budget: Annotated[int | None, engine_option("token_budget", "2048")] = None
    kv_dtype: Annotated[str | None, engine_option("kv_dtype", "auto", "TYPE")] = None
    num_pages: Annotated[int | None, engine_option("num_pages", "as many as fit a quarter of the free memory")] = None
    page_size: Annotated[int | None, engine_option("page_size", "16", "N", "--block-size")] = None
    host_pages: Annotated[int | None, engine_option("host_pages", "none")] = None
    backend: Annotated[str | None, engine_option("backend", "auto", "NAME")] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as fields of `EngineConfig`."""
        return _given(self)

    def check(self) -> None:
        """Raise a ConfigError for the first option out of its range."""
        check_engine(self.given())


@dataclass(frozen=True)
class Machine:
    """Where a model is computed, in which numbers, and by how many processes."""

    tensor_parallel: TensorParallel = 1
    dtype: Dtype = "auto"
    device: Device = "auto"

    def check(self) -> None:
        """Raise a RequestError where no process would compute."""
        require_at_least(1, tensor_parallel=self.tensor_parallel)


def require_at_least(least: int, **values: int | None) -> None:
    """Raise a RequestError for the first of the options that is below `least`; None, one that is left out, passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise RequestError(f"{name} must be at least {least}, got {value}", field=name)


def _given(options: Any) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None}

"""What may be set for sampling and for an engine: each number's range and each name's choices, stated once.

`SamplingParams` and `EngineConfig` check themselves by these tables, and the command line takes its ranges and help
texts from them. Nothing is imported here that takes time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelwright.errors import ConfigError, RequestError

LARGEST_SEED = LARGEST_INT = 2**63 - 1
COLDEST = 1e-5
"""Temperatures below this are greedy: dividing by less would leave the range of float32."""
LARGEST_FLOAT = 1e30
"""Scores are float32, and stay finite when they are divided or multiplied by less than this."""
LARGEST_COUNT = 2**31 - 1
"""Of pages, and of tokens in a step: they are counted in 32 bits."""
MOST_SEQUENCES = 2**20
"""At once, and tokens of a page: they are listed."""


@dataclass(frozen=True)
class Limit:
    """The rule of one field, and what it is for.

    Attributes:
        about: what a user is told of it.
        least, most: the smallest and the largest value.
        above: what a value must be larger than.
        cap: the largest magnitude, where one is set only to bound what a value may cost; by default what an int64
            holds, or for a float `LARGEST_FLOAT`.
        names: the values that there are, for a field that is a name.
    """

    about: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    cap: float | None = None
    names: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether `value`, which has the field's type, keeps the rule; None, for a field that is not set, does."""
        if value is None:
            return True
        if self.names:
            return value in self.names
        low = -float("inf") if self.least is None else self.least
        high = float("inf") if self.most is None else self.most
        in_range = low <= value <= high and (self.above is None or value > self.above)
        return in_range and not self._too_large(value)

    def _too_large(self, value: Any) -> bool:
        cap = LARGEST_FLOAT if isinstance(value, float) else LARGEST_INT
        return abs(value) > (cap if self.cap is None else self.cap)

    def broken(self, name: str, value: Any) -> str:
        """The sentence for a `value` of the field `name` that breaks the rule."""
        if self.names:
            names = ", ".join(f'"{each}"' for each in self.names)
            return f'{name} must be one of {names}; got "{value}"'
        if self.least is not None and self.most is not None:
            rule = f"from {self.least:g} to {_written(self.most)}"
        elif self._too_large(value) and value > 0:
            cap = LARGEST_FLOAT if isinstance(value, float) else LARGEST_INT
            rule = f"at most {_written(cap if self.cap is None else self.cap)}"
        else:
            rule = f"at least {self.least:g}" if self.above is None else f"above {self.above:g}"
        return f"{name} must be {rule}, got {_written(value)}"


def _written(number: float) -> str:
    """A number in a sentence; of a huge int only how huge it is."""
    if number == LARGEST_INT:
        return "2**63 - 1"
    if isinstance(number, int):
        return str(number) if number.bit_length() <= 64 else f"an int of {number.bit_length()} bits"
    return f"{number:g}" if number == LARGEST_FLOAT else str(number)


BACKENDS = ("eager", "record", "cudagraph")
"""Ways to run a decode step, besides the one that the engine picks."""
KV_DTYPES = ("auto", "int8")

SAMPLING: Mapping[str, Limit] = {
    "max_tokens": Limit("Longest answer, in tokens; 0 only reads the prompt.", least=0),
    "max_length": Limit("Longest prompt and answer together, in tokens.", least=1),
    "min_tokens": Limit("An answer does not end before so many tokens.", least=0),
    "temperature": Limit("0 takes the likeliest token, more is wilder.", least=0),
    "top_k": Limit("Sample from this many of the likeliest tokens; 0 or -1 is all.", least=-1),
    "top_p": Limit("Sample from the likeliest tokens of this total probability.", least=0, most=1),
    "min_p": Limit("Sample from tokens at least so probable, as a share of the likeliest one.", least=0, most=1),
    "repetition_penalty": Limit("Above 1 makes tokens seen already less likely.", above=0),
    "presence_penalty": Limit("Above 0 makes tokens of the answer less likely.", least=-2, most=2),
    "frequency_penalty": Limit("Above 0 makes tokens of the answer less likely each time they come.", least=-2, most=2),
    "n": Limit("How many answers.", least=1, cap=1024),
    "seed": Limit("Makes sampling repeatable.", least=0, most=LARGEST_SEED),
    "logprobs": Limit("Report so many of the likeliest tokens at each place.", least=0, cap=1000),
    "prompt_logprobs": Limit("Report so many of the likeliest tokens at each place of the prompt.", least=0, cap=1000),
}
"""The fields of `SamplingParams` that have a range, and what it is."""

ENGINE: Mapping[str, Limit] = {
    "max_batch": Limit("How many sequences run at once.", least=1, cap=MOST_SEQUENCES),
    "token_budget": Limit("How many tokens a step computes at most.", least=1, cap=LARGEST_COUNT),
    "max_context": Limit("How many tokens a sequence may have.", least=1, cap=LARGEST_COUNT),
    "page_size": Limit("Tokens in a page of the cache.", least=1, cap=MOST_SEQUENCES),
    "num_pages": Limit("Pages of the cache.", least=1, cap=LARGEST_COUNT),
    "host_pages": Limit("Pages in host memory for what waits for a page of the cache.", least=0, cap=LARGEST_COUNT),
    "kv_dtype": Limit("auto, or int8 to keep keys and values in less room.", names=KV_DTYPES),
    "kept_pictures": Limit("Of how many pictures the rows are kept.", least=1),
    "backend": Limit("auto, eager, record for decodes on a CPU, or cudagraph on a GPU.", names=("auto", *BACKENDS)),
}
"""The fields of `EngineConfig` that have a range or choices, and what they are."""


def check_sampling(values: Mapping[str, Any]) -> None:
    """Raise a RequestError for the first of `values`, by names of `SAMPLING`, that is out of its range."""
    for name, value in _broken(SAMPLING, values):
        raise RequestError(SAMPLING[name].broken(name, value), field=name)


def check_engine(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for the first of `values`, by names of `ENGINE`, that is out of its range."""
    for name, value in _broken(ENGINE, values):
        raise ConfigError(ENGINE[name].broken(name, value), field=name)


def _broken(table: Mapping[str, Limit], values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((name, values[name]) for name, limit in table.items() if name in values and not limit.allows(values[name]))

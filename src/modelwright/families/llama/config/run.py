"""What a Llama read from a MindFormers run keeps of the rest of that file: what is listed, and written again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelwright.configs.field_types import means_none
from modelwright.configs.limits import BACKENDS
from modelwright.configs.mindformers_run import keys_without_effect, rest_of_run
from modelwright.families.llama.config.names import ALIASES

RUN = "_run"
"""The attribute of a config that holds its `Run`."""
RUN_FIELDS = ("enable_parallel_optimizer", "gradient_accumulation_shard", "gradient_accumulation_steps")
"""The fields that stand in other sections of a run than the model's."""
GENERATION = frozenset({"max_length", "max_new_tokens", "min_length", "min_new_tokens", "temperature", "typical_p"})
"""Settings of generation that MindFormers' model configs state and that are no fields of them."""


@dataclass(frozen=True)
class Run:
    """The rest of the file that a config was read from.

    Attributes:
        rest: the sections that are no part of a model's config.
        without_effect: what of the run changes nothing, by its path, with the reason.
        put_aside: values of the model's config that its other values switch off.
    """

    rest: Mapping[str, Any] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    put_aside: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Mapping[str, Any], unused: Mapping[str, tuple[Any, str]]) -> "Run":
        """The rest of `run`, and what `set_aside` took out of its model's config."""
        aside = {name: value for name, (value, _) in unused.items()}
        reasons = {name: reason for name, (_, reason) in unused.items()}
        return cls(rest_of_run(run), keys_without_effect(run) | reasons, aside)

    def unused(self, config: Any) -> dict[str, Any]:
        """What was put aside, of the fields that still have the value which stands for it."""
        fields = {"scaling_factor": 1.0, "llm_backend": ""}
        given = self.put_aside.items()
        return copy.deepcopy(
            {name: value for name, value in given if name not in fields or getattr(config, name) == fields[name]}
        )


def set_aside(values: Mapping[str, Any], types: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a run's model in two: those to read, and those that say nothing there, each with the reason.

    A bare `None` of YAML is text; it says nothing where no text is meant. A factor that no method stretches by, and a
    backend of MindFormers' own, are no errors of a file.
    """
    read = {name: value for name, value in values.items() if not _unsaid(name, value, types)}
    unused: dict[str, tuple[Any, str]] = {}
    factor = read.get("scaling_factor")
    if factor not in (None, 1) and str(read.get("extend_method", "None")).lower() == "none":
        unused["scaling_factor"] = (read.pop("scaling_factor"), 'extend_method is "None": nothing is stretched')
    backend = read.get("llm_backend")
    if isinstance(backend, str) and backend not in ("", "compile", *BACKENDS):
        unused["llm_backend"] = (read.pop("llm_backend"), "it is a backend of MindFormers' own")
    drawn = [name for name in read if name not in types and name in GENERATION]
    unused |= {name: (read.pop(name), "no config holds it: requests and generation configs do") for name in drawn}
    return read, unused


def _unsaid(name: str, value: Any, types: Mapping[str, Any]) -> bool:
    field_name = ALIASES.get(name, name)
    return field_name in types and means_none(value, types[field_name])

"""The whole of a MindFormers run file, section by section, as the values of a `RunConfig`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from modelwright.configs.mindformers import merge_run
from modelwright.configs.mindformers_run import keys_without_effect
from modelwright.configs.run.mindformers.activations import read_activations
from modelwright.configs.run.mindformers.callbacks import read_callbacks, read_evaluation, read_profile
from modelwright.configs.run.mindformers.layout import read_layout
from modelwright.configs.run.mindformers.learning import read_learning
from modelwright.configs.run.mindformers.reader import Reader, Refusal
from modelwright.configs.run.mindformers.rows import read_rows
from modelwright.configs.run.mindformers.starting import read_start
from modelwright.configs.run.part import nested
from modelwright.errors import ConfigError

DIALECT = "mindformers"


@dataclass(frozen=True)
class Translation:
    """What a MindFormers run becomes.

    Attributes:
        paths: keys of a `RunConfig` by path, with their values.
        refusals: why it cannot be run as it is.
        without_effect: what of it changes nothing, by path, each with the reason.
        asked: the paths of the file that were looked at.
    """

    paths: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    without_effect: Mapping[str, str]
    asked: frozenset[str]

    @property
    def values(self) -> dict[str, Any]:
        """The values as a file of ours would hold them."""
        return nested(self.paths)

    def check(self, given: Collection[str]) -> None:
        """Raise a ConfigError for the first refusal that none of the keys `given` beside the file takes back."""
        for refusal in self.refusals:
            if not any(_concern(key, other) for key in given for other in refusal.unless):
                raise ConfigError(refusal.sentence)


def is_mindformers(values: Mapping[str, Any]) -> bool:
    """Whether the values of a run file are MindFormers', which states the model in `model.model_config`."""
    model = values.get("model")
    return isinstance(model, Mapping) and "model_config" in model


def translate(run: Mapping[str, Any]) -> Translation:
    """The run of a MindFormers file.

    Raises:
        ConfigError: a value has another type than its field, or the model is no Llama.
    """
    model = merge_run(run)
    reader = Reader(run)
    read_start(reader)
    read_learning(reader, model)
    read_rows(reader, model)
    read_layout(reader, model)
    read_activations(reader, model)
    read_profile(reader)
    read_callbacks(reader)
    read_evaluation(reader)
    weights = reader.values.pop("model.weights", None)
    named = {} if weights is None else {"checkpoint_name_or_path": weights}
    paths = {"model.config": {"dialect": DIALECT} | model | named} | reader.values
    return Translation(paths, tuple(reader.refusals), keys_without_effect(run) | reader.idle, frozenset(reader.asked))


def _concern(key: str, other: str) -> bool:
    """Whether a key is another one, or stands inside it, or holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")

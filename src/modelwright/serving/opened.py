"""From what a user calls a model to an engine that serves it: found, loaded, and spread over the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelwright.checkpoints.folder import Checkpoint
from modelwright.checkpoints.shards import Progress
from modelwright.checkpoints.source import AS_NUMBERS
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.errors import RequestError
from modelwright.ops.backends.notices import notices
from modelwright.serving.adapted import find_adapted
from modelwright.serving.defaults import engine_config, sampling_params
from modelwright.serving.load import Loaded, load_network
from modelwright.serving.names import model_path
from modelwright.serving.prompts import ends_of_turns
from modelwright.serving.ranks import Ranks, Work


@dataclass(frozen=True)
class Named:
    """A checkpoint, and what the user calls it."""

    name: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Opened:
    """A model in an engine of its own."""

    loaded: Loaded
    engine: Engine

    def notices(self) -> tuple[str, ...]:
        """What the user should know of how the model is computed here, a sentence each; usually there is none."""
        model, program = self.loaded.model, self.loaded.checkpoint.quantized_by
        as_numbers = () if program is None else (AS_NUMBERS.format(program),)
        return (*as_numbers, *notices(model.device, model.dtype))

    def params(self, asked: Mapping[str, Any]) -> SamplingParams:
        """How a request is continued; `asked` are the fields of `SamplingParams` that the caller named.

        Raises:
            RequestError: a value has the wrong type or is out of its range.
        """
        return sampling_params(self.loaded.model.config, {"eos_token_ids": self.engine.ends} | dict(asked))


def find_model(name: str) -> Named:
    """The checkpoint of a zoo name (which comes first), a folder or a hub id, or that of an adapter in such a place.

    Raises:
        CheckpointError, ConfigError: as `find_adapted`.
    """
    return Named(name, find_adapted(model_path(name)))


def open_model(
    model: Named,
    *,
    task: str,
    limits: Mapping[str, Any],
    ranks: Ranks,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
    template: str | None = None,
) -> Opened:
    """Load a model and make an engine for it, together with the other ranks.

    Args:
        task: what the model is to do, for the message where it cannot.
        limits: fields of `EngineConfig` that the caller named.
        template: the chat template that was asked for, at whose end of a turn answers end; None is the model's own.

    Raises:
        RequestError: the model has no head that draws tokens; the message says that it cannot do `task`.
        CheckpointError, ConfigError: as `load` and `Engine`.
    """
    if not model.checkpoint.draws_tokens:
        raise RequestError(f"{model.name} is a {model.checkpoint.architecture}, which cannot {task}")
    mesh = ranks.start(Work(model.checkpoint, dtype, dict(limits)))
    loaded = load_network(model.checkpoint, dtype=dtype, device=device, progress=progress)
    ends = () if loaded.tokenizer is None else ends_of_turns(loaded, template)
    engine = Engine(loaded.model, engine_config(loaded.model.config, limits), loaded.tokenizer, mesh, ends)
    return Opened(loaded, engine)

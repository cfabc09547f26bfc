"""What a run's config names, built: the model, its processor, and the rows that it learns from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelwright import zoo
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.source import find_folder
from modelwright.data.batches import held_out, open_batches
from modelwright.data.formats.fields import listed
from modelwright.errors import ConfigError
from modelwright.families import architecture_of, family_of
from modelwright.families.read import config_of
from modelwright.training.encoder import processor_in, run_encoder
from modelwright.training.seeds import draw_first_weights


def build_model(part: Any, seed: int, base: Path) -> tuple[Any, Any]:
    """The model of a :class:`modelwright.configs.run.ModelPart`, and its processor, or None where it has none.

    Args:
        seed: of first weights, where the part has none of its own.
        base: the folder that paths are relative to.

    Raises:
        CheckpointError, ConfigError: the folder cannot be read, or the config breaks a rule.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if part.path is not None:
        checkpoint = find_checkpoint(found_at(part.path, base))
        config = checkpoint.config_class.from_pretrained(checkpoint.folder)
        model = checkpoint.model_class.from_pretrained(checkpoint.folder, config=config, dtype=part.dtype)
        folder = checkpoint.folder
    else:
        model, folder = model_of_config(part, seed), None
        config = model.config
    return nn.Module.to(model, device), _processor(part, config, folder, base)


def counted(run: Any, config: Any, base: Path) -> tuple[int, int]:
    """The steps and the tokens of a run's epochs, by its rows and without its weights.

    Raises:
        ConfigError, CheckpointError, RequestError: the processor or a row cannot be read.
    """
    folder = None if run.model.path is None else find_checkpoint(found_at(run.model.path, base)).folder
    processor = _processor(run.model, config, folder, base)
    batches, _ = build_data(run, config, processor, base)
    try:
        return steps_of_epochs(run, batches), batches.tokens_in(run.epochs)
    finally:
        batches.close()


def steps_of_epochs(run: Any, batches: Any) -> int:
    """How many steps a run of epochs has, which may read all of its rows; a ConfigError where it has none."""
    steps = batches.steps_left(run.epochs)
    if steps:
        return steps
    passed, whole = run.data.skip, batches.steps_in(run.epochs)
    if whole:
        raise ConfigError(f"data.skip ({passed}) passes over all {whole} steps of epochs ({run.epochs})")
    raise ConfigError(
        f"epochs ({run.epochs}) have no step: with data.drop_last each needs batch.global ({run.batch.global_}) rows"
    )


def _processor(part: Any, config: Any, folder: Path | None, base: Path) -> Any:
    if part.processor is not None:
        folder = find_folder(found_at(part.processor, base), {})
    return None if folder is None else processor_in(folder, config)


def model_of_config(part: Any, seed: int) -> Any:
    """The model of `model.config` as a run begins with it: drawn, or filled from the folder that its config names.

    Args:
        seed: of first weights, where the part has none of its own.

    Raises:
        CheckpointError, ConfigError: that folder cannot be read, or the config breaks a rule.
    """
    config = config_of(part.config, "model.config")
    _, architecture = architecture_of({"model_type": config.model_type, "architectures": config.architectures})
    model_class = family_of(config).model_class(architecture)
    if getattr(config, "checkpoint_name_or_path", ""):  # which MindFormers' runs begin from
        return model_class.from_config(config)
    model = model_class(config)
    draw_first_weights(model, seed if part.init is None else part.init)
    return model


def found_at(path: str, base: Path) -> str:
    """A path relative to ``base`` where there is one, or a model of the zoo; otherwise as it is, such as a hub id."""
    here = base / path
    if here.exists():
        return str(here)
    return str(zoo.path(path)) if path in zoo.names() else path


def unread_of(name: str, unread: Sequence[str]) -> str | None:
    """The sentence on what nothing reads of a source's rows; None where all is read."""
    return f"{name}: nothing reads {listed(unread)} of its rows" if unread else None


def build_data(config: Any, model_config: Any, processor: Any, base: Path) -> tuple[Any, Mapping[str, Any]]:
    """The steps of a run, and its held-out sets by name.

    Raises:
        ConfigError: the model has no processor, or no source is named.
        RequestError: a file is missing or damaged.
    """
    if processor is None:
        raise ConfigError("a model built from model.config needs model.processor, the folder of its tokenizer")
    encoder = run_encoder(config.data, model_config, processor)
    micro, data = config.batch.micro, config.data
    sets = held_out(data, encoder, micro, base=base) if data.eval else {}
    if config.evaluate.only:
        return None, sets
    return open_batches(data, encoder, micro, config.batch.global_, config.seed, base=base), sets

"""A checkpoint of a run as others read it: the official folder, MindFormers', or an adapter."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.dialect import GENERATION_FILE
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.new_folder import check_new, copy_companions, new_folder
from modelwright.checkpoints.shards import INDEX_FILE
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.configs.run import RunConfig
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of, resolve
from modelwright.processing.marks import end_tokens
from modelwright.processing.templates import turn_ends
from modelwright.processing.tokenizer import read_fast_tokenizer, tokenizer_folder
from modelwright.training.build import model_of_config
from modelwright.training.checkpoints.locks import reading
from modelwright.training.checkpoints.saved import Saved
from modelwright.training.checkpoints.tensor_files import described, new_tensors
from modelwright.training.tuning import check_adapted, lora_of, merge, save_adapter, settle

MODEL = "model."
"""What the names of a model's tensors begin with, among those of a run."""
ADAPTERS = ("stacked", "official")
LAYOUTS = ("hf", "mindformers")
_NOT_CARRIED = {"config.json", "adapter_config.json", INDEX_FILE}
_STEERING = "e_score_correction_bias"


def export(
    saved: Saved,
    out: Path,
    *,
    source: str | Path | None = None,
    adapter: Path | None = None,
    processor: Path | None = None,
    format: str | None = None,
    dtype: str | None = None,
    to: str = "hf",
    max_shard_size: int | str = "5GB",
) -> str:
    """Write what a run had learnt at a step into a new folder.

    Args:
        source: the folder or hub id of the weights that the run began with, of which frozen ones are taken, and the
            files of tokenizer and processor; None for a run that began with drawn weights and whose model has neither.
        adapter: that of the run's ``model.adapter``.
        processor: that of the run's ``model.processor``, whose files are taken then.
        format: of a run with LoRA: ``stacked``, ``official`` or ``merged``; None is what the run asks for.
        dtype: the type of the weights; None is the run's.
        to: ``hf``, the official folder, or ``mindformers``.

    Returns:
        What was written: ``model``, or the ``adapter`` of one.

    Raises:
        CheckpointError: the folder is not free or cannot be written, or the checkpoint does not fit the source.
        ConfigError: a format or layout that this run has not.
    """
    check_new(out)
    run = RunConfig.of(saved.run())
    lora = None if run.tune is None else run.tune.lora
    with reading(saved.folder):
        model = learnt(saved, run, source, adapter)
    adapted = bool(lora_of(model))
    form = _format(format or (lora.format if lora is not None else None), adapted)
    if form in ADAPTERS:
        if to != "hf" or dtype is not None:
            raise ConfigError(f"an adapter is written as peft reads it, in its own type: merge it for {to} or {dtype}")
        with new_folder(out) as folder:
            save_adapter(model, folder, form, base=None if source is None else str(source))
        return "adapter"
    if adapted:
        model = merge(model)
    if dtype is not None:
        _cast(model, dtype)
    if to == "hf":
        with new_folder(out) as folder:
            write_official(model, folder, _files_of(processor, source), max_shard_size)
        return "model"
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.", suffix=".part") as holder:
        official = Path(holder) / "official"
        write_official(model, official, _files_of(processor, source), max_shard_size)
        convert(official, out, to=to, max_shard_size=max_shard_size)
    return "model"


def check_export(model: Any, run: RunConfig) -> None:
    """Raise a ConfigError where the folder that a run ends with could not hold what trains of its model with LoRA."""
    lora = None if run.tune is None else run.tune.lora
    if run.checkpoint.on_end != "export" or not lora_of(model):
        return
    if _format(None if lora is None else lora.format, adapted=True) in ADAPTERS:
        try:
            check_adapted(model)
        except CheckpointError as error:
            raise ConfigError(
                f"the run's adapter could not be written ({error}): set tune.lora.format: merged"
            ) from error


def learnt(saved: Saved, run: RunConfig, source: str | Path | None, adapter: Path | None = None) -> Any:
    """The model of a run, with LoRA if it trained that, and with the weights of a checkpoint.

    Raises:
        CheckpointError: the run's own weights are needed and no source is given, or the two do not fit.
    """
    model = _begun(saved, run, source)
    settle(model, run.tune, adapter=adapter, seed=run.seed)
    own = model.state_dict()
    found = {name: name.removeprefix(MODEL) for name in described(saved.state) if name.startswith(MODEL)}
    if unknown := sorted(set(found.values()) - own.keys()):
        raise CheckpointError(f"{saved.folder} holds {unknown[0]}, which the model of the run has not")
    with torch.no_grad():
        for name, tensor in new_tensors(saved.state, found).items():
            if own[found[name]].shape != tensor.shape:
                raise CheckpointError(
                    f"{found[name]} is of shape {list(tensor.shape)} in {saved.folder}, and the model of the run has "
                    f"{list(own[found[name]].shape)}"
                )
            own[found[name]].copy_(tensor)
    return model.eval()


def write_official(model: Any, folder: Path, files: Path | None, max_shard_size: int | str = "5GB") -> None:
    """Write a model with ``save_pretrained``, and the small files beside the weights that it came from.

    Its generation settings end where our engine ends answers: at the end of the tokenizer and of a turn, too.

    Args:
        folder: new, or that of an earlier export, whose weights are replaced.
        files: the folder that has tokenizer, processor and generation settings; None where there is none.
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if files is not None:
        settings = folder / GENERATION_FILE
        made = read_json(settings) if settings.is_file() else {}
        settings.unlink(missing_ok=True)
        copy_companions(files, folder, _NOT_CARRIED)
        _name_ends(settings, made, model.config)


def _name_ends(settings: Path, made: dict[str, Any], config: Any) -> None:
    """Add to the settings of generation, or to those that were made without a file, the ends that they lack."""
    record, folder = family_of(config), settings.parent
    if record.draws != "text" or not (tokenizer_folder(folder) / "tokenizer.json").is_file():
        return
    tokenizer = read_fast_tokenizer(folder)
    familys = None if record.chat_template is None else resolve(record.chat_template)
    turns = () if record.sees_pictures else turn_ends(tokenizer, familys)
    values = read_json(settings) if settings.is_file() else made
    said = values.get("eos_token_id")
    named = said if isinstance(said, list) else [] if said is None else [said]
    ends = [end for end in end_tokens(named, tokenizer, turns) if end < config.get_text_config().vocab_size]
    if not set(ends) <= set(named):
        values |= {"eos_token_id": ends if len(ends) > 1 else ends[0]}
        settings.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _begun(saved: Saved, run: RunConfig, source: str | Path | None) -> Any:
    """The model as the run began with it."""
    if run.model.path is not None:
        if source is None:
            raise CheckpointError(
                f"the run of {saved.folder} began with {run.model.path}, which is needed for the rest"
            )
        checkpoint = find_checkpoint(source)
        return checkpoint.model_class.from_pretrained(checkpoint.folder, dtype=run.model.dtype)
    model = model_of_config(run.model, run.seed)  # what was frozen is still so
    _cast(model, run.model.dtype)
    return model


def _files_of(processor: Path | None, source: str | Path | None) -> Path | None:
    if processor is not None:
        return find_folder(processor, {})
    return None if source is None else find_checkpoint(source).folder


def _format(asked: str | None, adapted: bool) -> str:
    if not adapted:
        if asked in ADAPTERS:
            raise ConfigError(f"format {asked} is of an adapter, and the run trains its weights without LoRA")
        return "merged"
    form = asked or ADAPTERS[0]
    if form not in (*ADAPTERS, "merged"):
        raise ConfigError(f"format must be one of {', '.join(ADAPTERS)} and merged, got {form!r}")
    return form


@torch.no_grad()
def _cast(model: Any, dtype: str) -> None:
    """Change the type of what is written of a model; what steers routers stays float32."""
    written = set(model.state_dict())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in written and tensor.is_floating_point() and not name.endswith(_STEERING):
            tensor.data = tensor.data.to(getattr(torch, dtype))

"""What stands beside the weights of a converted checkpoint: its config, its sampling defaults, its companions."""

import copy
import shutil
from pathlib import Path

from modelwright.checkpoints import generation
from modelwright.checkpoints.conversion_source import CHECKPOINT_PATH, YAMLS, Dialect, Dropped, Source
from modelwright.checkpoints.new_folder import copy_companions
from modelwright.checkpoints.shards import INDEX_FILE
from modelwright.configs import CheckedConfig
from modelwright.configs.mindformers import read_yaml
from modelwright.families.llama.config import LlamaConfig

YAML_FILE = "mindformers.yaml"
NAME_MAP = "param_name_map.json"
"""MindFormers' own index of its shards, whose files are no longer there."""


def write_config(folder: Path, source: Source, dialect: Dialect, config: CheckedConfig) -> list[Dropped]:
    """Write the config in the target's dialect and copy what serves both; what is left out comes back with reasons.

    A config that changes neither in dialect nor in values is copied as it is, with all it says of a run.

    Raises:
        ConfigError: the target's dialect cannot express the config.
    """
    dropped: list[Dropped] = []
    if dialect == source.dialect and config == source.config and not _names_a_checkpoint(source):
        shutil.copyfile(source.config_file, folder / source.config_file.name)
    elif dialect == "hf":
        _write_hugging_face(folder, source, config)
        dropped += _run_sections(source)
    elif isinstance(config, LlamaConfig):
        config.to_mindformers(folder / YAML_FILE)
        dropped += [
            Dropped(f"{generation.FILE} {name}", "MindFormers' config has no such field")
            for name in generation.unsaid(config, source.folder)
        ]
        dropped += _run_sections(source)
    passed_over = {source.config_file.name, "config.json", INDEX_FILE, NAME_MAP}
    passed_over |= {generation.FILE} if dialect == "mindformers" else set()
    left = copy_companions(source.folder, folder, passed_over)
    unused = [name for name in left if not name.endswith(".safetensors")]
    return [*dropped, *(Dropped(name, "not a file that a model is read from") for name in unused)]


def _write_hugging_face(folder: Path, source: Source, config: CheckedConfig) -> None:
    config = copy.deepcopy(config)
    config.architectures = [source.architecture]
    config.save_pretrained(folder)
    if source.dialect == "mindformers" and isinstance(config, LlamaConfig):
        generation.write_generation(folder, config)


def _names_a_checkpoint(source: Source) -> bool:
    return any(entry.name.startswith(CHECKPOINT_PATH) for entry in source.dropped)


def _run_sections(source: Source) -> list[Dropped]:
    """The sections of a run's YAML that are no part of a model's config."""
    if source.config_file.suffix not in YAMLS:
        return []
    model = LlamaConfig().to_mindformers().keys() | {"moe_config"}
    named = [name for name in read_yaml(source.config_file) if name not in model]
    return [Dropped(f"{source.config_file.name} {name}", "about a training run, not the model") for name in named]

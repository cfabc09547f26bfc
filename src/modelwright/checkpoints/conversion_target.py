"""What stands beside the weights of a converted checkpoint: its config, its sampling defaults, its companions."""

import copy
import shutil
from pathlib import Path

from modelwright.checkpoints.conversion_source import Dropped, Source
from modelwright.checkpoints.dialect import GENERATION_FILE, TensorDialect, other_dialects
from modelwright.checkpoints.new_folder import copy_companions
from modelwright.checkpoints.pickled import PICKLED_INDEX
from modelwright.checkpoints.shards import INDEX_FILE
from modelwright.configs import CheckedConfig


def write_config(folder: Path, source: Source, dialect: TensorDialect | None, config: CheckedConfig) -> list[Dropped]:
    """Write the config in the target's dialect and copy what serves both; what is left out comes back with reasons.

    A config that changes neither in dialect nor in values is copied as it is, with all it says of a run.

    Raises:
        ConfigError: the target's dialect cannot express the config.
    """
    dropped: list[Dropped] = []
    if dialect is source.dialect and config == source.config and source.config_as_it_is:
        shutil.copyfile(source.config_file, folder / source.config_file.name)
    elif dialect is None:
        _write_hugging_face(folder, source, config)
        dropped += _run_sections(source)
    else:
        dialect.write_config(folder, config)
        dropped += [
            Dropped(f"{GENERATION_FILE} {name}", f"{dialect.title}' config has no such field")
            for name in dialect.unsaid(config, source.folder)
        ]
        dropped += [] if source.dialect is dialect else _run_sections(source)  # which is written again
    passed_over = {source.config_file.name, "config.json", INDEX_FILE, PICKLED_INDEX}
    passed_over |= {header.shard.name for header in source.tensors.values()}
    passed_over |= {name for other in other_dialects().values() for name in other.own_files}
    passed_over |= set() if dialect is None else {GENERATION_FILE}
    left = copy_companions(source.folder, folder, passed_over)
    unused = [name for name in left if not name.endswith(".safetensors")]
    return [*dropped, *(Dropped(name, "not a file that a model is read from") for name in unused)]


def _write_hugging_face(folder: Path, source: Source, config: CheckedConfig) -> None:
    config = copy.deepcopy(config)
    config.architectures = [source.architecture]
    config.save_pretrained(folder)
    if source.dialect is not None:
        source.dialect.write_sampling(folder, config)


def _run_sections(source: Source) -> list[Dropped]:
    """The sections of a run's file that are no part of a model's config."""
    sections = [] if source.dialect is None else source.dialect.run_sections(source.config_file)
    return [Dropped(f"{source.config_file.name} {name}", "about a training run, not the model") for name in sections]

"""MindFormers' way to write a Llama, for conversions: its config files, tensor names and layouts, sampling settings."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelwright.checkpoints.dialect import YAMLS
from modelwright.checkpoints.layouts import PackedTensor
from modelwright.checkpoints.source import read_json
from modelwright.configs.mindformers import ARCHITECTURE, merge_run
from modelwright.configs.yaml_file import read_yaml
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.mindformers import names
from modelwright.families.llama.mindformers.generation import unsaid, with_generation, write_generation

YAML_FILE = "mindformers.yaml"
NAME_MAP = "param_name_map.json"
"""MindFormers' own index of its shards, whose files are no longer there after a conversion."""
EMBEDDING = "model.tok_embeddings."
"""What every MindFormers checkpoint of a Llama holds and no other does."""
CHECKPOINT_PATH = "checkpoint_name_or_path"


@dataclass(frozen=True)
class MindFormers:
    """A `TensorDialect`, whose methods say what each answer means."""

    title: str = "MindFormers"
    architecture: str = ARCHITECTURE
    own_files: frozenset[str] = frozenset({NAME_MAP})

    @property
    def ties(self) -> Mapping[str, str]:
        return {"lm_head.weight": f"{EMBEDDING}embedding_weight"}

    def holds(self, names: Collection[str]) -> bool:
        return any(name.startswith(EMBEDDING) for name in names)

    def read_config(self, file: Path) -> tuple[LlamaConfig, list[str]]:
        values = read_yaml(file) if file.suffix in YAMLS else read_json(file)
        nowhere = {CHECKPOINT_PATH: ""}  # the checkpoint that a file names may lie on another machine
        if "model" in values:
            config, values = LlamaConfig.from_mindformers(values, **nowhere), merge_run(values)
        else:
            config = LlamaConfig.from_dict({"dialect": "mindformers"} | values, **nowhere)
        path = values.get(CHECKPOINT_PATH)
        return config, [f"{CHECKPOINT_PATH} ({path})"] if path else []

    def run_sections(self, file: Path) -> list[str]:
        if file.suffix not in YAMLS:
            return []
        model = LlamaConfig().to_mindformers().keys() | {"moe_config"}
        return [name for name in read_yaml(file) if name not in model]

    def write_config(self, folder: Path, config: LlamaConfig) -> None:
        config.to_mindformers(folder / YAML_FILE)

    def left_out(self, name: str) -> str | None:
        return names.left_out(name)

    def usual_name(self, name: str) -> str:
        return names.usual_name(name)

    def tensors(self, config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[PackedTensor]:
        packing = names.packing_of(config) if shapes is None else names.recognise(config, shapes)
        return list(names.mindformers_tensors(config, packing))

    def with_sampling(self, config: LlamaConfig, folder: Path) -> Any:
        return with_generation(config, folder)

    def write_sampling(self, folder: Path, config: LlamaConfig) -> None:
        write_generation(folder, config)

    def unsaid(self, config: LlamaConfig, folder: Path) -> list[str]:
        return unsaid(config, folder)


MINDFORMERS = MindFormers()

"""Tiny configs, models and checkpoints in the official layout, small enough that a test builds as many as it likes."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM

torch.set_num_threads(1)  # threads bring tiny tensors nothing, and a busy machine makes them wait for each other

GOLDEN = Path(__file__).parent / "golden"

DENSE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
MOE: dict[str, Any] = DENSE | {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
GROUPED = MOE | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
NOAUX = GROUPED | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True}
MHA = MOE | {"use_mla": False, "q_lora_rank": None, "kv_lora_rank": None, "qk_rope_head_dim": 0}
YARN = MOE | {
    "q_lora_rank": None,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 32,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
}
VARIANTS = {"dense": DENSE, "moe": MOE, "grouped": GROUPED, "noaux": NOAUX, "mha": MHA, "yarn": YARN}

TILE = 8
VL2: dict[str, Any] = {
    "vision_config": {"image_size": TILE, "patch_size": 2, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0},
    "projector_config": {"n_embed": 32, "input_dim": 16},
    "language_config": MOE,
    "candidate_resolutions": [[TILE, TILE], [2 * TILE, TILE], [TILE, 2 * TILE]],
}


def tiny_v2(cls: Any = DeepseekV2ForCausalLM, base: dict[str, Any] = MOE, seed: int = 0, **fields: Any) -> Any:
    """A DeepSeek-V2 model with random weights, in eval mode."""
    torch.manual_seed(seed)
    return cls(DeepseekV2Config(**base | fields)).eval()


def tiny_vl2(
    seed: int = 0, language: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **fields: Any
) -> Any:
    """A DeepSeek-VL2 model with random weights, in eval mode; ``language`` and ``vision`` override fields of theirs."""
    torch.manual_seed(seed)
    parts = {
        "language_config": VL2["language_config"] | (language or {}),
        "vision_config": VL2["vision_config"] | (vision or {}),
    }
    return DeepseekVLV2ForCausalLM(DeepseekVLV2Config(**VL2 | parts | fields)).eval()


def recompute_layers(model: Any, settings: dict[str, Any] | None = None) -> None:
    """Turn gradient checkpointing on, by the name that the installed transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)


def tokens(*shape: int, vocab: int = 64, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them 0 or 1 (the fakes' bos and eos)."""
    return torch.randint(2, vocab, shape, generator=torch.Generator().manual_seed(seed))


def picture_rows(grid: tuple[int, int], side: int = 2) -> int:
    """Rows of a picture whose local tiles form ``grid`` (width, height), in the 2D layout of the fakes."""
    width, height = grid
    return side * (side + 1) + 1 + height * side * (width * side + 1)


def vl2_inputs(
    rows: Iterable[list[tuple[int, int]]],
    seed: int = 0,
    words: int = 3,
    count: Callable[[tuple[int, int]], int] = picture_rows,
) -> dict[str, torch.Tensor]:
    """A left-padded batch: each row of pictures (their grids), with ``words`` tokens before, between and after them."""
    rows, generator = list(rows), torch.Generator().manual_seed(seed)
    places = [
        [word for grid in row for word in [False] * words + [True] * count(grid)] + [False] * words for row in rows
    ]
    length, tiles = max(map(len, places)), [sum(1 + w * h for w, h in row) for row in rows]
    ids = torch.randint(2, 64, (len(rows), length), generator=generator)
    mask, seen = torch.zeros(len(rows), length, dtype=torch.bool), torch.zeros(len(rows), length, dtype=torch.long)
    images = torch.zeros(len(rows), max(1, *tiles), 3, TILE, TILE)
    crops = torch.zeros(len(rows), max(1, *map(len, rows)), 2, dtype=torch.long)
    for i, row in enumerate(rows):
        own = len(places[i])
        mask[i, length - own :] = torch.tensor(places[i], dtype=torch.bool)
        seen[i, length - own :] = 1
        images[i, : tiles[i]] = torch.randn(tiles[i], 3, TILE, TILE, generator=generator)
        if row:
            crops[i, : len(row)] = torch.tensor(row)
    return {
        "input_ids": ids,
        "attention_mask": seen,
        "images": images,
        "images_seq_mask": mask,
        "images_spatial_crop": crops,
    }


def golden(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A reference file's config, weights, inputs and outputs."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])

    def under(prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return config, under("weight."), under("input."), under("output.")


def write_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """``config.json`` and safetensors as on the hub: one file, or ``shards`` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return write_weights(folder, weights, shards)


def write_mindformers(
    folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], shards: int = 1, **sections: Any
) -> Path:
    """A MindFormers run's YAML with ``config`` as its model's and ``sections`` beside, and safetensors as above."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {"model_config": {"type": "LlamaConfig", **config}, "arch": {"type": "LlamaForCausalLM"}}
    (folder / "run.yaml").write_text(yaml.safe_dump({"model": model, **sections}))
    return write_weights(folder, weights, shards)


def write_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """Safetensors as on the hub: one file, or ``shards`` files with an index, neighbours in different files."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names, weight_map = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:06d}.safetensors"
        part = {name: weights[name] for name in names[i::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def official_weights(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors under their names on disk, tied ones included."""
    state = model.state_dict()
    return {name: state[place.parameter][place.index].clone() for name, place in model.places().items()}

"""What `benchmarks.engine` measures: its models, made from seeded random weights, its cases, and their prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelwright import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekVLV2Config,
    DeepseekVLV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
VISION: dict[str, Any] = {"image_size": 384, "patch_size": 14, "width": 768, "layers": 12, "heads": 12}
CROP = (2, 2)
"""Local tiles of the picture that V is shown, beside the whole of it."""
FAMILIES: dict[str, tuple[Any, Any]] = {
    "L": (LlamaConfig, LlamaForCausalLM),
    "D": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "V": (DeepseekVLV2Config, DeepseekVLV2ForCausalLM),
}
QUANTIZED = {"int8": "int8", "int4": "int4"}
"""Folders of the quantized checkpoints, and the method of each."""


@dataclass(frozen=True)
class Case:
    """Prompts of these lengths; what is timed is reading them (``prefill``, ``picture``) or going on (``decode``).

    `steps` are those that a timed piece of decoding has, each of the whole batch.
    """

    name: str
    kind: str
    lengths: tuple[int, ...]
    steps: int = 0
    models: str = "LD"


def ragged(count: int, mean: int) -> tuple[int, ...]:
    """Lengths from half of `mean` to one and a half of it."""
    return tuple(round(mean * (0.5 + each / (count - 1))) for each in range(count))


CASES = (
    Case("prefill 512", "prefill", (512,)),
    Case("prefill 2048", "prefill", (2048,)),
    Case("decode b1 @512", "decode", (512,), 24),
    Case("decode b1 @4096", "decode", (4096,), 24),
    Case("decode b8", "decode", ragged(8, 512), 12),
    Case("decode b32", "decode", ragged(32, 512), 8),
    Case("picture to first token", "picture", (), models="V"),
)


def config_of(model: str, layers: int | None) -> Any:
    """The config of one of the models, of fewer layers if asked."""
    build = FAMILIES[model][0]
    if model == "L":
        return build(**LLAMA | _fewer(LLAMA["num_hidden_layers"], layers))
    fields = DEEPSEEK | _fewer(DEEPSEEK["num_hidden_layers"], layers)
    if model == "D":
        return build(**fields)
    projector = {"input_dim": VISION["width"], "n_embed": fields["hidden_size"]}
    return build(vision_config=VISION, projector_config=projector, language_config=fields)


def _fewer(full: int, layers: int | None) -> dict[str, int]:
    return {"num_hidden_layers": min(full, layers or full)}


def make_checkpoint(model: str, layers: int | None, folder: Path) -> Path:
    """A model of seeded random weights in `folder`, unless it is there already."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        built = FAMILIES[model][1](config_of(model, layers)).to(torch.bfloat16)
        built.save_pretrained(folder)
    return folder


def bytes_per_token(model: str, layers: int | None, context: int) -> int:
    """What one token reads at least, in bf16: each weight that it passes, and the keys and values before it.

    Of the embedding it reads a row, and of the routed experts those that it is sent to.
    """
    config = config_of(model, layers)
    with torch.device("meta"):
        built = FAMILIES[model][1](config)
    numbers = 0.0
    for name, parameter in built.named_parameters():
        share = config.num_experts_per_tok / config.n_routed_experts if ".experts." in name else 1
        numbers += 0 if "embed_tokens" in name else parameter.numel() * share
    latent = DEEPSEEK["kv_lora_rank"] + DEEPSEEK["qk_rope_head_dim"]
    grouped = 2 * LLAMA["num_key_value_heads"] * (LLAMA["hidden_size"] // LLAMA["num_attention_heads"])
    cached = context * config.num_hidden_layers * (grouped if model == "L" else latent)
    return round(2 * (numbers + cached))


def seeded_prompts(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    """Token ids, the same for everyone."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 30000, (length,), generator=generator).tolist() for length in lengths]


def picture_batch(config: Any, seed: int) -> dict[str, Any]:
    """What a processor makes of a question about one picture; its pixels differ from seed to seed."""
    side, tiles = config.vision_config.image_size, 1 + CROP[0] * CROP[1]
    (words,) = seeded_prompts((32,), seed)
    rows = config.picture_tokens(CROP)
    generator = torch.Generator().manual_seed(seed)
    marked = [False] * 16 + [True] * rows + [False] * 16
    return {
        "input_ids": torch.tensor([words[:16] + [3] * rows + words[16:]]),
        "images": torch.rand((1, tiles, 3, side, side), generator=generator).to(torch.bfloat16) * 2 - 1,
        "images_seq_mask": torch.tensor([marked]),
        "images_spatial_crop": torch.tensor([[CROP]]),
    }

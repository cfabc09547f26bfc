"""Tiny random checkpoints in the official layout, written to a folder; nothing here is trained or asserted."""

import json
import shutil
from pathlib import Path

import torch

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"
PICTURE = GOLDEN / "square.png"
VOCABULARY = 429  # the golden tokenizer's 421 tokens, then the image, grounding and role tokens

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.5,  # wide enough that different prompts get different answers
}


def write_v2(folder: Path, **settings) -> Path:
    """A text-only DeepSeek-V2 with the golden tokenizer."""
    torch.manual_seed(0)
    DeepseekV2ForCausalLM(DeepseekV2Config(**{**DECODER, **settings})).save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder


def write_vl2(folder: Path, **settings) -> Path:
    """A DeepSeek-VL2 with the golden processor: tiles of 56 pixels, 4 x 4 patches, 2 x 2 rows."""
    torch.manual_seed(0)
    processor = json.loads((GOLDEN / "processor_config.json").read_text("utf-8"))
    config = DeepseekVLV2Config(
        vision_config={"image_size": 56, "patch_size": 14, "width": 16, "layers": 1, "heads": 2},
        projector_config={"depth": 2},
        language_config={**DECODER, **settings},
        candidate_resolutions=processor["candidate_resolutions"],
    )
    DeepseekVLV2ForCausalLM(config).save_pretrained(folder)
    shutil.copy(GOLDEN / "processor_config.json", folder)
    _copy_tokenizer(folder)
    return folder


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "tokenizer" / name, folder)

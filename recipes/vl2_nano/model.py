"""The shape of vl2-nano: every part of DeepSeek-VL2 (latent attention, experts, tiles), small enough for a laptop."""

import copy
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from modelwright import (
    DeepseekV2Config,
    DeepseekVLV2Config,
    DeepseekVLV2ForCausalLM,
    DeepseekVLV2Processor,
    MlpProjectorConfig,
    VisionEncoderConfig,
)
from recipes.vl2_nano.tokenizer import build_tokenizer

TILE, PATCH = 96, 12
RESOLUTIONS = ((TILE, TILE), (2 * TILE, TILE), (TILE, 2 * TILE), (2 * TILE, 2 * TILE))
WIDTH = 192


def build_processor(folder: Path) -> DeepseekVLV2Processor:
    """A processor with a tokenizer trained on the questions, written into ``folder`` and read back."""
    build_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return DeepseekVLV2Processor(tokenizer, candidate_resolutions=RESOLUTIONS, patch_size=PATCH, downsample_ratio=2)


def build_model(processor: DeepseekVLV2Processor) -> DeepseekVLV2ForCausalLM:
    """The untrained model for that processor's tokens."""
    tokenizer = processor.tokenizer
    config = DeepseekVLV2Config(
        candidate_resolutions=RESOLUTIONS,
        vision_config=VisionEncoderConfig(
            model_name="vl2_nano", image_size=TILE, patch_size=PATCH, width=160, layers=6, heads=5, mlp_ratio=4.0
        ),
        projector_config=MlpProjectorConfig(input_dim=160, n_embed=WIDTH),
        language_config=DeepseekV2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=512,
            moe_intermediate_size=128,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            norm_topk_prob=True,
            kv_lora_rank=64,
            q_lora_rank=None,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=48,
            max_position_embeddings=2048,
            aux_loss_alpha=0.003,
            pad_token_id=_id(tokenizer.pad_token_id),
            bos_token_id=_id(tokenizer.bos_token_id),
            eos_token_id=_id(tokenizer.eos_token_id),
        ),
        vision_batch_size=1024,
    )
    return DeepseekVLV2ForCausalLM(config)


def write_out_attention(model: DeepseekVLV2ForCausalLM) -> None:
    """Attend with written-out products: on a CPU, for rows this short, they train far faster than the fused kernel."""
    model.set_attn_implementation({"": "eager", "language_config": "eager"})
    model.vision.config = copy.deepcopy(model.vision.config)  # the saved one stays as it is
    model.vision.config.deterministic = True


def save(model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, folder: Path) -> None:
    """Write model and processor as one official folder, weights in bf16, greedy by default."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer = processor.tokenizer
    GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    processor.save_pretrained(folder)


def _id(token_id: object) -> int:
    assert isinstance(token_id, int)
    return token_id

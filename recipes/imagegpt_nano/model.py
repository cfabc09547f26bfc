"""The shape of imagegpt-nano and the folder it is kept in; no training, no drawing."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from modelwright import ImageGPTConfig, ImageGPTForCausalImageModeling
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from recipes.imagegpt_nano.draw import PIXELS, SIDE
from recipes.imagegpt_nano.palette import CLUSTERS

START = len(CLUSTERS)
"""The token before the first pixel."""


def build_config(width: int = 144, layers: int = 5, heads: int = 6) -> ImageGPTConfig:
    """1.3 million parameters unless asked for less."""
    return ImageGPTConfig(
        vocab_size=START + 1,
        n_positions=PIXELS,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,  # no picture is seen twice
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        architectures=["ImageGPTForCausalImageModeling"],
    )


def build_processor() -> ImageGPTImageProcessor:
    """Pictures of 20 x 20 pixels in our palette."""
    return ImageGPTImageProcessor(clusters=CLUSTERS, size={"height": SIDE, "width": SIDE})


def save(model: ImageGPTForCausalImageModeling, folder: Path) -> None:
    """Write an official folder, weights in bf16, sampling by default."""
    state = {name: tensor.detach().cpu().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    GenerationConfig(do_sample=True, max_length=PIXELS + 1, bos_token_id=START).save_pretrained(folder)
    build_processor().save_pretrained(folder)

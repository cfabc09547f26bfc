"""What every test shares: no network, no time limit per hypothesis example, which a busy machine would break, and GPU
kernels that run under Triton's interpreter where there is no GPU."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for the hub fails at once

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, which transformers may do

import pytest
from hypothesis import settings
from PIL import Image

from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor

GOLDEN = Path(__file__).parent / "golden" / "processor"

settings.register_profile("modelwright", deadline=None)
settings.load_profile("modelwright")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the official processor's files and results."""
    return GOLDEN


@pytest.fixture(scope="session")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(GOLDEN)


@pytest.fixture
def red() -> Image.Image:
    return Image.new("RGB", (100, 50), "red")

"""The reference files, the processor they describe, and small pictures."""

from pathlib import Path

import pytest
from PIL import Image

from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(GOLDEN)


@pytest.fixture
def red() -> Image.Image:
    return Image.new("RGB", (100, 50), "red")

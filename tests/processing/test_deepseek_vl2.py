"""The processor against the reference outputs of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from modelwright.processing import DeepseekVLV2Processor

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")
BATCH = CASES.pop("batch")["of"]


@pytest.fixture(scope="module")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(GOLDEN)


def pictures(case: str) -> list[Path]:
    return [GOLDEN / f"{name}.png" for name in CASES[case]["images"]]


@pytest.mark.parametrize("case", CASES)
def test_single_conversations_equal_the_official_code(processor, case):
    batch = processor(conversations=CASES[case]["conversation"], images=pictures(case), **CASES[case]["kwargs"])
    for ours, official in (
        ("input_ids", "input_ids"),
        ("labels", "target_ids"),
        ("images_seq_mask", "images_seq_mask"),
        ("images_spatial_crop", "images_spatial_crop"),
    ):
        np.testing.assert_array_equal(batch[ours][0].numpy(), EXPECTED[f"{case}.{official}"], err_msg=ours)
    np.testing.assert_allclose(batch["images"][0].numpy(), EXPECTED[f"{case}.images"], atol=1e-6, rtol=0)


def test_a_batch_equals_the_official_code(processor):
    batch = processor(
        conversations=[CASES[case]["conversation"] for case in BATCH], images=[pictures(case) for case in BATCH]
    )
    for name in ("input_ids", "labels", "attention_mask", "images_seq_mask", "images_spatial_crop"):
        np.testing.assert_array_equal(batch[name].numpy(), EXPECTED[f"batch.{name}"], err_msg=name)
    np.testing.assert_allclose(batch["images"].numpy(), EXPECTED["batch.images"], atol=1e-6, rtol=0)
    assert batch["images_seq_mask"].dtype == batch["attention_mask"].dtype == torch.bool

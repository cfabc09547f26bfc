"""What a batch's FLOPs are counted of: its documents, tiles and labels, and neither padding nor the tail of a row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.counting import count
from modelwright.planner.training_flops import training_flops
from modelwright.training.report.step_flops import StepFlops, document_lengths
from tests.fakes import MOE
from tests.llamas import HUGGING_FACE
from tests.planner.models import tiny_vl2_config
from tests.planner.test_flops import Counting
from tests.planner.test_training_flops import language_model_and_ids


def batch(*micro, counted):
    return SimpleNamespace(micro=micro, counted=counted)


def test_documents_of_a_packed_row_are_counted_apart_and_its_tail_is_not():
    ids = torch.zeros(2, 10, dtype=torch.int64)
    labels = torch.ones(2, 10, dtype=torch.int64)
    labels[1, 7:] = -100
    numbers = torch.tensor([[0] * 4 + [1] * 6, [0] * 7 + [1] * 3])
    micro = {"input_ids": ids, "labels": labels, "seq_idx": numbers}
    assert list(document_lengths(micro)) == [4, 6, 7]
    counts = count(LlamaConfig(**HUGGING_FACE))
    apart = sum(training_flops(counts, n, learned=n - 1).total for n in (4, 6, 7))
    assert StepFlops(counts)(batch(micro, counted=14)) == apart


def test_padding_is_not_counted():
    ids = np.zeros((2, 6), np.int64)
    micro = {"input_ids": ids, "labels": ids, "attention_mask": np.array([[1] * 6, [1, 1, 1, 0, 0, 0]])}
    assert list(document_lengths(micro)) == [6, 3]


def test_tiles_are_those_of_the_pictures():
    counts = count(tiny_vl2_config())
    ids = torch.zeros(1, 9, dtype=torch.int64)
    micro = {"input_ids": ids, "labels": ids, "images": torch.zeros(1, 5, 3, 8, 8)}
    micro["images_spatial_crop"] = torch.tensor([[[2, 1], [1, 1], [0, 0]]])
    whole = training_flops(counts, 9, tiles=5, learned=8).total
    assert StepFlops(counts)(batch(micro, counted=8)) == whole


def test_lora_costs_its_own_numbers_and_no_gradient_of_frozen_weights():
    counts = count(DeepseekV2Config(**MOE))
    rows = [
        {"part": part, "trainable": 0, "total": 10}
        for part in ("embedding", "dense", "shared", "gate", "norms", "head")
    ]
    rows += [{"part": "attention", "trainable": 48, "total": 1048}, {"part": "experts", "trainable": 80, "total": 1080}]
    ids = torch.zeros(1, 9, dtype=torch.int64)
    found = StepFlops(counts, rows)(batch({"input_ids": ids, "labels": ids}, counted=9))
    forward = counts.flops(9)
    products = forward.attention - 9 * sum(
        linear.flops for layer in counts.layers for linear in layer.attention.linears
    )
    expert = counts.layers[-1].feed_forward
    own = 6 * 9 * (48 + 80 * expert.chosen // expert.experts)
    assert found == 2 * forward.total + products + own


@pytest.mark.parametrize("name", ["llama", "llama_experts", "v2_experts", "v2_dense", "imagegpt"])
def test_a_pass_of_the_loop_is_counted_exactly(name):
    """The passes that training takes: logits where a label counts, in chunks."""
    config, model, ids = language_model_and_ids(name)
    labels = ids.clone()
    labels[0, :5] = -100
    counted = model.training_counts(labels=labels, input_ids=ids).counted
    with Counting() as counting:
        model.train().training_loss(labels=labels, input_ids=ids, chunk=3).total.backward()
    found = StepFlops(count(config))(batch({"input_ids": ids, "labels": labels}, counted=counted))
    assert found == counting.flops

"""Random logits under the constraint always write boxes that parse."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modelwright.errors import ConfigError
from modelwright.processing import BoxConstraint, parse_grounding_report


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


def test_every_row_of_random_logits_writes_boxes_that_parse(tokenizer):
    torch.manual_seed(0)
    prompt = tokenizer.encode("<|ref|>cat<|/ref|><|det|>", add_special_tokens=False)
    constraint = BoxConstraint(tokenizer, max_boxes=2)
    ids = torch.tensor([prompt] * 16)
    for _ in range(60):
        scores = constraint(ids, torch.randn(16, len(tokenizer)))
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1)], 1)
    for row in ids.tolist():
        assert constraint.boxes.close_id in row
        answer = tokenizer.decode(row[: row.index(constraint.boxes.close_id) + 1])
        report = parse_grounding_report(answer, (999, 999))
        assert report.skipped == [] and len(report.groundings) == 1


def test_rows_outside_det_and_spoilt_rows_are_left_alone(tokenizer):
    constraint = BoxConstraint(tokenizer)
    rows = ["plain text", "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", "<|det|>no boxes"]
    for row in rows:
        ids = torch.tensor([tokenizer.encode(row, add_special_tokens=False)])
        scores = torch.randn(1, len(tokenizer))
        assert constraint(ids, scores) is scores


def test_the_scores_handed_in_are_not_changed(tokenizer):
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("<|det|>")]])
    scores = torch.zeros(1, len(tokenizer) + 7)  # a vocabulary padded beyond the tokenizer
    constrained = BoxConstraint(tokenizer)(ids, scores)
    assert torch.isfinite(scores).all()
    allowed = torch.isfinite(constrained[0]).nonzero()[:, 0].tolist()
    assert {tokenizer.decode([id_]) for id_ in allowed} <= {"[", "[["}


def test_a_tokenizer_that_cannot_write_boxes_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<|det|>": 0}, unk_token="<|det|>")))
    with pytest.raises(ConfigError, match=r"the tokenizer has no token '<\|/det\|>'"):
        BoxConstraint(bare)

"""Packed rows of vl2-nano's training against the processor and against each conversation alone."""

import numpy as np
import pytest
import torch

from modelwright import DeepseekVLV2Processor, zoo
from recipes.vl2_nano.model import build_model
from recipes.vl2_nano.packing import Packer, Row, collate
from recipes.vl2_nano.questions import Example, make_example


@pytest.fixture(scope="module")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano"))


def messages(example: Example, dialogue) -> list[dict[str, str]]:
    texts = [text for turn in dialogue for text in turn]
    roles = ["<|User|>", "<|Assistant|>"] * len(dialogue)
    listed = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    listed[0]["content"] = "<image>\n" * len(example.pictures) + listed[0]["content"]
    return listed


@pytest.mark.parametrize("kind", [{"scene": 1.0}, {"card": 1.0}, {"pair": 1.0}])
def test_a_conversation_has_the_processors_tokens_labels_and_tiles(processor, kind):
    proportions = {"scene": 0.0, "card": 0.0, "pair": 0.0} | kind
    example = make_example(np.random.default_rng(5), 6, **proportions)
    packer = Packer(processor, budget=4000)
    row = packer.row(example)
    for group, dialogue in enumerate(example.dialogues, start=1):
        alone = processor.process_one(messages(example, dialogue), list(example.pictures), inference_mode=False)
        kept = [i for i, number in enumerate(row.groups) if number in (0, group)]
        assert [row.ids[i] for i in kept] == alone.input_ids.tolist()
        assert [row.positions[i] for i in kept] == list(range(len(kept)))
        np.testing.assert_array_equal(row.tiles, alone.images)
        assert row.crops == [tuple(crop) for crop in alone.images_spatial_crop.tolist()]


def test_only_answers_and_their_ends_are_learned(processor):
    example = make_example(np.random.default_rng(6), 5)
    packer = Packer(processor)
    row = packer.row(example)
    learned = [token for token, label in zip(row.ids, row.labels, strict=True) if label != processor.ignore_id]
    answers = processor.tokenizer.decode(learned).split(processor.tokenizer.eos_token)
    expected = [turn.answer for dialogue in example.dialogues for turn in dialogue]
    assert [answer.strip() for answer in answers if answer] == expected


def test_packed_conversations_are_computed_as_if_alone(processor):
    torch.manual_seed(0)
    model = build_model(processor).eval()
    packer = Packer(processor)
    example = make_example(np.random.default_rng(7), 4)
    row = packer.row(example)
    other = packer.row(make_example(np.random.default_rng(8), 3))
    with torch.no_grad():
        packed = model(**collate([row, other], processor), use_cache=False).logits[0]
        for group in range(1, max(row.groups) + 1):
            kept = [i for i, number in enumerate(row.groups) if number in (0, group)]
            pick = {name: [getattr(row, name)[i] for i in kept] for name in ("ids", "labels", "positions")}
            alone = Row(**pick, groups=[0] * len(kept), tiles=row.tiles, crops=row.crops)
            logits = model(**collate([alone], processor), use_cache=False).logits[0]
            torch.testing.assert_close(packed[kept], logits, atol=1e-4, rtol=1e-4)


def test_a_row_keeps_to_its_budget(processor):
    packer = Packer(processor, budget=200)
    for seed in range(20):
        row = packer.row(make_example(np.random.default_rng(seed), 12))
        assert len(row.ids) <= 200 or max(row.groups) == 1

"""Prompts from text, ids and a processor's output: what is read, left out and refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modelwright.engine.prompt import Prompt, read_prompt
from modelwright.engine.served_model import ServedModel
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from tests.checkpoints.tiny import GOLDEN
from tests.engine.small_tokenizers import byte_tokenizer, encode
from tests.fakes import picture_rows, tiny_v2, tiny_vl2, vl2_inputs
from tests.llamas import tiny_llama

SEES = ServedModel.of(tiny_vl2())
READS = ServedModel.of(tiny_v2())


def read(given: Any, served: ServedModel = READS, tokenizer: Any = None) -> Prompt:
    return read_prompt(given, tokenizer, served)


@pytest.mark.parametrize("given", [[3, 4, 5], (3, 4, 5), torch.tensor([3, 4, 5]), torch.tensor([3, 4, 5]).numpy()])
def test_ids_in_any_form(given):
    assert read(given) == Prompt((3, 4, 5))


def test_a_prompt_is_itself():
    prompt = Prompt((3, 4))
    assert read(prompt) is prompt


def test_text_is_what_the_tokenizer_makes_of_it():
    tokenizer = byte_tokenizer()
    assert read("a b", tokenizer=tokenizer).tokens == tuple(encode(tokenizer, "a b"))
    with pytest.raises(RequestError, match="a prompt as text needs a tokenizer, and the engine has none"):
        read("a b")


def test_a_rendered_template_gets_no_second_beginning():
    """As when a template, which prints the mark, was rendered by the caller."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer", add_bos_token=True)
    tokenizer.add_bos_token = True
    bare = encode(tokenizer, "Hello")
    assert read("Hello", tokenizer=tokenizer).tokens == (0, *bare)
    assert read("<｜begin▁of▁sentence｜>Hello", tokenizer=tokenizer).tokens == (0, *bare)


def test_padding_is_left_out():
    llama = ServedModel.of(tiny_llama())
    assert read([0, 5, 0, 6, 0], llama).tokens == (5, 6)
    assert read({"input_ids": [[0, 5, 0, 6]]}, llama).tokens == (5, 6)
    assert read({"input_ids": [[0, 5, 0, 6]], "attention_mask": [[0, 1, 1, 1]]}, llama).tokens == (5, 0, 6)
    assert read([0, 5, 0, 6], READS).tokens == (0, 5, 0, 6)
    compressed = ServedModel.of(tiny_llama(use_attn_mask_compression=True))
    assert read([0, 5, 0, 6], compressed).tokens == (0, 5, 0, 6)


def test_pictures_stand_at_their_places_and_are_known_by_their_pixels():
    batch = vl2_inputs([[(1, 2), (1, 1)], [(2, 1)]])
    for row, grids in enumerate([[(1, 2), (1, 1)], [(2, 1)]]):
        own = {name: part[row : row + 1] for name, part in batch.items()}
        prompt = read(own, SEES)
        assert [picture.crop for picture in prompt.pictures] == grids
        assert [len(picture.places) for picture in prompt.pictures] == [picture_rows(grid) for grid in grids]
        assert [len(picture.tiles) for picture in prompt.pictures] == [1 + w * h for w, h in grids]
        places = [place for picture in prompt.pictures for place in picture.places]
        real = own["attention_mask"][0].bool()
        assert places == own["images_seq_mask"][0][real].nonzero()[:, 0].tolist()
        assert len(prompt.tokens) == int(real.sum())
        keys = prompt.keys
        assert [keys[i] for i in range(len(keys)) if i not in places] == [
            token for i, token in enumerate(prompt.tokens) if i not in places
        ]
        assert [keys[i] for i in prompt.pictures[0].places] == [
            (prompt.pictures[0].key, number) for number in range(len(prompt.pictures[0].places))
        ]


def test_a_key_tells_pixels_tilings_and_types_apart():
    batch = vl2_inputs([[(1, 2)]])
    key = read(batch, SEES).pictures[0].key
    other = batch | {"images": batch["images"].clone()}
    assert read(other, SEES).pictures[0].key == key
    other["images"][0, 2, 0, 0, 0] += 1
    turned = batch | {"images_spatial_crop": torch.tensor([[[2, 1]]])}
    mask = torch.ones_like(batch["images_seq_mask"])
    mask[:, picture_rows((2, 1)) :] = False
    keys = {
        key,
        read(other, SEES).pictures[0].key,
        read(batch | {"images": batch["images"].bfloat16()}, SEES).pictures[0].key,
        read(turned | {"images_seq_mask": mask}, SEES).pictures[0].key,
    }
    assert len(keys) == 4


def processed(grids: list[tuple[int, int]]) -> tuple[ProcessedPrompt, dict[str, Any]]:
    """A row as a processor gives it alone, and the batch of one that it makes of it."""
    batch = vl2_inputs([grids])
    row: dict[str, Any] = {name: part[0].numpy() for name, part in batch.items()}
    names = ("input_ids", "images_seq_mask", "images", "images_spatial_crop")
    rows = tuple(picture_rows(grid) for grid in grids)
    own = ProcessedPrompt(
        text="", labels=row["input_ids"], num_image_tokens=rows, **{name: row[name] for name in names}
    )
    assert batch["attention_mask"].all() and own.picture_tokens == sum(rows)
    return own, batch


@pytest.mark.parametrize("grids", [[], [(1, 2)], [(1, 2), (1, 1)]])
def test_a_processed_prompt_is_the_same_as_the_batch_that_is_made_of_it(grids):
    own, batch = processed(grids)
    alone, unpacked = read(own, SEES), read(batch, SEES)
    assert (alone.tokens, alone.keys) == (unpacked.tokens, unpacked.keys)
    for picture, other in zip(alone.pictures, unpacked.pictures, strict=True):
        assert (picture.crop, picture.places) == (other.crop, other.places)
        assert torch.equal(picture.tiles, other.tiles)
    assert len(alone.pictures) == len(grids)


def test_of_a_processed_prompt_every_token_is_read():
    llama = ServedModel.of(tiny_llama())
    assert read(ProcessedPrompt.of_tokens([0, 5, 0]), llama) == Prompt((0, 5, 0))
    assert (len(ProcessedPrompt.of_tokens([0, 5, 0])), ProcessedPrompt.of_tokens([0]).picture_tokens) == (3, 0)


def test_a_processed_prompt_of_another_model_is_refused():
    own, _ = processed([(1, 1)])
    with pytest.raises(RequestError, match="a deepseek_v2 model reads text only, and the prompt holds 1 pictures"):
        read(own, READS)
    small = replace(own, images=own.images[..., :4])
    with pytest.raises(RequestError, match=r"images must be at least 2 tiles of \[3, 8, 8\], got \[2, 3, 8, 4\]"):
        read(small, SEES)
    short = replace(own, images_seq_mask=np.zeros_like(own.images_seq_mask))
    with pytest.raises(RequestError, match="the prompt has 0 image places and its pictures have 13 rows"):
        read(short, SEES)


def test_a_batch_without_pictures_is_text():
    batch = vl2_inputs([[]])
    assert read(batch, SEES).pictures == read(batch, READS).pictures == ()
    assert read({"input_ids": torch.tensor([[3, 4]]), "images": None}, READS) == Prompt((3, 4))


BATCH = vl2_inputs([[(1, 1)]])
WRONG: list[tuple[Any, str]] = [
    (5, "a prompt must be text, token ids or a processor's output, got int"),
    ([3, "a"], "a prompt must be text, token ids or a processor's output, got list"),
    ([[3, 4]], "a prompt must be text, token ids or a processor's output, got list"),
    ({"images": None}, "a processor's output must hold input_ids, got images"),
    ({}, "a processor's output must hold input_ids, got nothing"),
    ({"input_ids": [[3], [4]]}, r"input_ids of one prompt must have 2 dimensions, the first 1, got \[2, 1\]"),
    ({"input_ids": [3, 4]}, r"input_ids of one prompt must have 2 dimensions, the first 1, got \[2\]"),
    (BATCH | {"images_seq_mask": None}, "images come with .*; images_seq_mask is missing"),
    (BATCH | {"images_spatial_crop": None}, "images come with .*; images_spatial_crop is missing"),
    (
        BATCH | {"images_seq_mask": torch.zeros_like(BATCH["images_seq_mask"])},
        "the prompt has 0 image places and its pictures have 13 rows",
    ),
    (BATCH | {"images": None}, "the prompt has 13 image places and its pictures have 0 rows"),
    (BATCH | {"images": BATCH["images"][:, :1]}, r"images must be at least 2 tiles of \[3, 8, 8\], got \[1, 3, 8, 8\]"),
    (
        BATCH | {"images": BATCH["images"][..., :4]},
        r"images must be at least 2 tiles of \[3, 8, 8\], got \[2, 3, 8, 4\]",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_no_prompt_is_refused(given, message):
    with pytest.raises(RequestError, match=message):
        read(given, SEES)


def test_pictures_for_a_model_that_sees_none_are_refused():
    with pytest.raises(RequestError, match="a deepseek_v2 model reads text only, and the prompt holds 1 pictures"):
        read(BATCH, READS)

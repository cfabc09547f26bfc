"""Documents that share a row teach a model what they teach apart: losses and gradients, with pictures and without."""

from typing import Any

import numpy as np
import pytest
import torch

from modelwright.data.collate import collate
from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.examples import Place
from tests.fakes import MHA, TILE, picture_rows, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

HERE = Place("rows", 1)
Grids = tuple[tuple[int, int], ...]


def document(seed: int, words: int, pictures: Grids = (), between: int = 2) -> Document:
    """So many random words, and pictures before every other one, of which half the words are learned."""
    draw = np.random.default_rng(seed)
    mask = [False] * between
    for grid in pictures:
        mask += [True] * picture_rows(grid) + [False] * between
    mask += [False] * max(0, words - between * (1 + len(pictures)))
    shown, ids = np.array(mask), draw.integers(2, 64, len(mask))
    labels = np.where(shown | (draw.random(len(mask)) < 0.5) | (np.arange(len(mask)) == 0), UNLEARNED, ids)
    if not pictures:
        return Document(ids, labels, HERE)
    tiles = draw.normal(size=(sum(1 + w * h for w, h in pictures), 3, TILE, TILE)).astype(np.float32)
    return Document(ids, labels, HERE, tiles, pictures, shown)


WORDS = [[document(1, 9), document(2, 1), document(3, 14)], [document(4, 6)], [document(5, 3), document(6, 20)]]
PICTURES = [
    [document(1, 9, ((1, 1),)), document(2, 6), document(3, 8, ((2, 1), (1, 1)))],
    [document(4, 7)],
    [document(5, 6, ((1, 2),)), document(6, 5, ((1, 1),))],
]
MODELS = {
    "llama": (lambda: tiny_llama(base=HUGGING_FACE), WORDS),
    "llama of mindformers": (tiny_llama, WORDS),
    "deepseek-v2": (tiny_v2, WORDS),
    "deepseek-v2 without latents": (lambda: tiny_v2(base=MHA), WORDS),
    "deepseek-vl2": (tiny_vl2, PICTURES),
    "deepseek-vl2, 1D": (lambda: tiny_vl2(tile_tag="1D"), [[document(7, 4)], WORDS[0]]),
}


def taught(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of batches over their counted labels, and its gradients."""
    model.zero_grad()
    counted = sum(int((batch["labels"][:, 1:] != UNLEARNED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        own = int((batch["labels"][:, 1:] != UNLEARNED).sum())
        loss = model(**batch, use_cache=False).loss * (own / counted)  # which is their mean
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_packed_is_apart(name):
    make, rows = MODELS[name]
    model = make()
    alone = [[each] for row in rows for each in row if each.counted]
    packed, packed_grads = taught(model, [collate(rows, 0, packed=True)])
    for batches in (
        [collate([row], 0, packed=False) for row in alone],  # each in a row of its own, without padding
        [collate(alone, 0, packed=False)],  # padded to the longest
        [collate([row], 0, packed=True) for row in rows],
        [collate(alone, 0, packed=True)],  # one document a row
    ):
        loss, grads = taught(model, batches)
        assert loss == pytest.approx(packed, rel=1e-6)
        assert grads.keys() == packed_grads.keys()
        for parameter, grad in grads.items():
            scale = float(packed_grads[parameter].abs().max())
            assert torch.allclose(grad, packed_grads[parameter], rtol=0, atol=1e-5 * scale + 1e-8), parameter


def test_documents_do_not_see_each_other():
    """The other documents of a row may change as they like."""
    model, (row, *_) = tiny_vl2(), PICTURES
    other = [document(11, 9, ((1, 1),)), row[1], document(13, 8, ((2, 1), (1, 1)))]
    start = len(row[0])
    with torch.no_grad():
        one, two = (model(**collate([each], 0, packed=True), use_cache=False).logits for each in (row, other))
    stop = start + len(row[1])
    assert torch.allclose(one[:, start:stop], two[:, start:stop], rtol=0, atol=1e-5)  # experts sum in another order
    assert not torch.allclose(one[:, stop:], two[:, stop:], rtol=0, atol=1e-2)


def test_pictures_of_documents_follow_each_other():
    batch = collate(PICTURES, 0, packed=True)
    assert batch["images"].shape[:2] == (3, 2 + 3 + 2) and batch["images_spatial_crop"].tolist() == [
        *([[1, 1], [2, 1], [1, 1]], [[0, 0]] * 3, [[1, 2], [1, 1], [0, 0]]),
    ]
    shown = [each for each in PICTURES[0] if each.tiles is not None]
    assert torch.equal(batch["images"][0], torch.from_numpy(np.concatenate([each.tiles for each in shown])))
    assert batch["images_seq_mask"].sum(1).tolist() == [
        sum(0 if each.picture_mask is None else int(each.picture_mask.sum()) for each in row) for row in PICTURES
    ]
    assert "images" not in collate([PICTURES[1]], 0, packed=True)


def test_the_last_pixel_is_foreseen_without_being_read():
    model = tiny_imagegpt()  # 24 positions
    pixels = np.random.default_rng(0).integers(0, 16, (2, 24))
    start = np.full((2, 1), 16)
    ids = np.concatenate([start, pixels], axis=1)
    labels = np.concatenate([np.full((2, 1), UNLEARNED), pixels], axis=1)
    rows = [[Document(i, row, HERE, reads_last=False)] for i, row in zip(ids, labels, strict=True)]
    batch = collate(rows, 0, packed=False)
    assert batch.keys() == {"input_ids", "labels"} and batch["input_ids"].shape == (2, 24)
    with torch.no_grad():
        loss = model(**batch, use_cache=False).loss
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(pixels).flatten())
    assert float(loss) == pytest.approx(float(by_hand), abs=1e-6)

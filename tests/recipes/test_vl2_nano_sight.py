"""The targets that vl2-nano's tower and projector learn from, against the pictures they were drawn for."""

import itertools

import numpy as np
import pytest
import torch

from modelwright.families.deepseek_vl2.projector import join_neighbours
from modelwright.processing.image_processor import TileImageProcessor
from recipes.vl2_nano.model import PATCH, RESOLUTIONS, TILE
from recipes.vl2_nano.pictures import draw_card, draw_scene, draw_sheet
from recipes.vl2_nano.sight import HUES, UNCOUNTED, WHATS, PatchHeads, RowHeads, Sights, _by_row, things_in

COUNT = TILE // PATCH


@pytest.fixture(scope="module")
def sights() -> Sights:
    return Sights(TileImageProcessor(RESOLUTIONS, TILE), PATCH, batch=3)


def test_a_card_is_seen_character_by_character():
    card = draw_card(np.random.default_rng(3))
    things = things_in(card)
    assert "".join(WHATS[thing.what] for thing in things) == card.text
    assert things[0].box[0] >= card.box[0] and things[-1].box[2] <= card.box[2]
    assert all(left.box[2] == right.box[0] for left, right in itertools.pairwise(things))
    assert [thing.turn for thing in things] == list(range(1, len(card.text) + 1))


def test_a_sheet_is_full_of_characters_inside_it_that_nobody_counts(sights):
    sheet = draw_sheet(np.random.default_rng(6), 2 * TILE)
    assert len(sheet.characters) > 5
    assert all(0 <= x1 < x2 <= 2 * TILE and 0 <= y1 < y2 <= 2 * TILE for _, (x1, y1, x2, y2) in sheet.characters)
    assert {thing.turn for thing in things_in(sheet)} == {UNCOUNTED}
    assert sights._targets(sheet)["turn"].max() == 0


def test_the_global_view_names_and_places_every_shape_where_it_is(sights):
    scene = draw_scene(np.random.default_rng(4))
    width, height = scene.picture.size
    scale = TILE / max(width, height)
    left, top = (TILE - width * scale) / 2, (TILE - height * scale) / 2
    targets = sights._targets(scene)
    for shape in scene.shapes:
        x, y = shape.centre
        column, row = int((left + x * scale) / PATCH), int((top + y * scale) / PATCH)
        patch = row * COUNT + column
        centre = ((column + 0.5) * PATCH - left) / scale, ((row + 0.5) * PATCH - top) / scale
        x1, y1, x2, y2 = shape.box
        if not (x1 <= centre[0] < x2 and y1 <= centre[1] < y2):
            continue  # a shape smaller than a patch may miss the patch's centre
        assert WHATS[targets["what"][0, patch]] == shape.kind
        assert HUES[targets["hue"][0, patch]] == shape.colour
        expected = np.array(shape.box) / (width, height, width, height)
        np.testing.assert_allclose(targets["place"][0, patch], expected, atol=1e-6)
        assert targets["turn"][0, patch] == 1 + scene.shapes.index(shape)


def test_local_tiles_hold_the_mosaic_and_no_place(sights):
    scene = draw_scene(np.random.default_rng(5))
    tiles = sights.cut(scene.picture)
    targets = sights._targets(scene)
    columns, rows = tiles.grid
    assert len(targets["what"]) == 1 + columns * rows
    assert np.isnan(targets["place"][1:]).all() and (targets["turn"][1:] == UNCOUNTED).all()
    assert targets["box"].min() >= 0 and targets["box"].max() <= 1
    named = {(WHATS[w], HUES[h]) for w, h in zip(targets["what"][1:].flat, targets["hue"][1:].flat, strict=True) if w}
    assert named == {(shape.kind, shape.colour) for shape in scene.shapes}


def test_rows_join_the_patches_that_the_projector_joins():
    numbers = torch.arange(COUNT * COUNT, dtype=torch.float32)
    joined = join_neighbours(numbers[None, :, None], 2)[0]  # [rows, 4], the patch numbers of each row
    batch = {name: numbers[None] for name in ("what", "hue", "turn", "box", "place")}
    torch.testing.assert_close(_by_row(batch, len(joined))["what"][0], joined)


def test_the_losses_of_the_eyes_fall_when_the_features_say_it(sights):
    batch = sights(np.random.default_rng(0))
    tiles, patches = batch["what"].shape
    told = torch.nn.functional.one_hot(batch["what"], len(WHATS)).float() * 20
    heads = PatchHeads(len(WHATS))
    with torch.no_grad():
        heads.what.weight.copy_(torch.eye(len(WHATS)))
        heads.what.bias.zero_()
    losses = heads(told, batch)
    assert losses["right"] == 1 and losses["what"] < 1e-4
    words = (list(range(len(WHATS))), [0, *range(len(WHATS), len(WHATS) + len(HUES) - 1)])
    embeddings = torch.eye(len(WHATS) + len(HUES) - 1)
    rows = RowHeads(embeddings.shape[1], 4, words)
    wanted = rows._mixture(*(_by_row(batch, patches // 4)[name] for name in ("what", "hue")), len(embeddings))
    torch.testing.assert_close(wanted.sum(-1), torch.ones(tiles, patches // 4))
    right = rows(wanted, embeddings, batch)["words"]
    wrong = rows(wanted.roll(1, dims=-1), embeddings, batch)["words"]
    assert right < wrong

"""Documents: their shapes, what counts, and how they are cut."""

import numpy as np
import pytest

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.examples import Place

HERE = Place("rows.jsonl", 1)


def document(n: int, pictures: tuple[tuple[int, int], ...] = (), tokens_each: int = 3, between: int = 2) -> Document:
    """``n`` tokens, in which a picture of one local tile begins ``between`` tokens after the end of the last."""
    ids, mask = np.arange(n), np.zeros(n, bool)
    labels = np.where(ids == 0, UNLEARNED, ids)
    start = between
    for _ in pictures:
        mask[start : start + tokens_each] = True
        start += tokens_each + between
    tiles = np.arange(2 * len(pictures), dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 4), np.float32)
    if not pictures:
        return Document(ids, labels, HERE)
    return Document(ids, labels, HERE, tiles, pictures, mask)


def test_a_document_knows_what_it_teaches():
    assert document(5).counted == 4 and len(document(5)) == 5
    assert not document(5).is_outline and not document(9, ((1, 1),)).is_outline


def test_shapes_that_do_not_fit_are_a_mistake():
    for wrong in (
        {"labels": np.array([UNLEARNED, 1])},
        {"labels": np.array([0, 1, 2])},
        {"grids": ((1, 1),)},
        {"grids": ((1, 1),), "picture_mask": np.zeros(3, bool), "tiles": np.zeros((1, 3, 4, 4))},
    ):
        fine = {"ids": np.arange(3), "labels": np.array([UNLEARNED, 1, 2]), "place": HERE}
        with pytest.raises(AssertionError):
            Document(**fine | wrong)


CUTS = [(12, 12, 2), (11, 11, 2), (10, 10, 2), (9, 7, 1), (8, 7, 1), (7, 7, 1), (6, 6, 1), (5, 5, 1), (4, 2, 0)]


@pytest.mark.parametrize(("most", "left", "pictures"), [*CUTS, (1, 1, 0)])
def test_a_picture_is_never_cut(most, left, pictures):
    whole = document(12, ((1, 1), (1, 1)))  # pictures at 2..4 and 7..9
    cut = whole.cut(most, (3, 3))
    assert len(cut) == left and len(cut.grids) == pictures
    assert cut.ids.tolist() == list(range(left)) and cut.labels.tolist() == whole.labels[:left].tolist()
    if pictures:
        assert cut.tiles is not None and cut.picture_mask is not None
        assert cut.tiles[:, 0, 0, 0].tolist() == list(range(2 * pictures)) and cut.picture_mask.sum() == 3 * pictures
    else:
        assert cut.tiles is None and cut.picture_mask is None


def test_words_are_cut_where_they_are_too_many():
    assert document(9).cut(4).labels.tolist() == [UNLEARNED, 1, 2, 3]
    assert document(3).cut(4).ids.tolist() == [0, 1, 2]

"""Boxes and labels really appear, within the picture, on a copy."""

import numpy as np
import pytest
from PIL import Image

from modelwright.processing.drawing import draw_groundings
from modelwright.processing.grounding import Grounding


def test_the_box_is_outlined_and_the_original_untouched():
    picture = Image.new("RGB", (200, 150), "white")
    drawn = draw_groundings(picture, [Grounding("cat", ((50, 60, 150, 120),))])
    assert np.asarray(picture).min() == 255
    changed = (np.asarray(drawn) != 255).any(-1)
    assert changed[60:120, 50].all() and changed[60:120, 150].all() and changed[120, 50:150].all()
    assert changed[45:59, 52:60].any()  # the label stands above
    assert not changed[70:110, 60:140].any() and not changed[:40].any()


def test_labels_share_a_colour_only_with_themselves():
    picture = Image.new("RGB", (300, 300), "white")
    drawn = draw_groundings(
        picture, [Grounding("a", ((10, 50, 60, 90), (80, 50, 130, 90))), Grounding("b", ((150, 50, 250, 90),))]
    )
    first, second, other = (drawn.getpixel((x, 90)) for x in (40, 100, 200))
    assert first == second != other


@pytest.mark.parametrize("size", [(1, 1), (8, 3), (40, 20), (600, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_any_picture_and_any_label(size, mode):
    width, height = size
    groundings = [Grounding("a very long label " * 9, ((0, 0, width, height), (-5.2, -1, width * 2, height + 9)))]
    groundings += [Grounding(label, ((width - 0.5, 0, width, height),)) for label in ("", "two\nlines", "猫")]
    drawn = draw_groundings(Image.new(mode, size), groundings)
    assert (drawn.mode, drawn.size) == ("RGB", size)

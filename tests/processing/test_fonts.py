"""Labels are drawn in characters that a font has."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFont

from modelwright.processing import fonts
from modelwright.processing.drawing import draw_groundings
from modelwright.processing.fonts import font_for, has
from modelwright.processing.grounding import Grounding


@pytest.fixture
def own() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def test_a_font_has_what_it_draws_unlike_a_missing_character(own):
    assert all(has(own, character) for character in "aZ9 -_.,\t")
    assert not any(has(own, character) for character in "中红圆한あ")


def test_missing_characters_are_escapes_where_the_system_has_no_font(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    font, text = font_for("red 圆", 20)
    assert text == "red \\u5706"
    assert all(has(font, character) for character in text)


def test_a_font_of_the_system_draws_what_pillows_lacks(monkeypatch, tmp_path, own):
    assert isinstance(own.path, BytesIO)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/noto.ttf").write_bytes(own.path.getvalue())
    (tmp_path / "cjk.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    answers = {"file": True, "own": False}
    plain = has
    monkeypatch.setattr(
        fonts, "has", lambda font, c: plain(font, c) or answers["own" if isinstance(font.path, BytesIO) else "file"]
    )
    font, text = font_for("圆", 20)
    assert text == "圆"
    assert str(font.path) == str(tmp_path / "deep/noto.ttf")


@pytest.mark.parametrize("side", [448, 4000])
def test_labels_grow_with_the_picture(side):
    drawn = draw_groundings(
        Image.new("RGB", (side, side)), [Grounding("circle", ((side / 4, side / 4, side / 2, side / 2),))]
    )
    rows = np.flatnonzero(np.asarray(drawn).any(axis=(1, 2)))
    label = side // 4 - rows[0]
    assert 0.02 < label / side < 0.06

"""The SVG: well-formed, its bars and areas to scale, inside its own frame, and safe for any name."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from modelwright.planner.device import Devices
from modelwright.planner.plan import plan
from modelwright.planner.plot import COLOURS, HEIGHT, WIDTH, Scale, draw
from tests.planner.small import deepseek, llama

SVG = "{http://www.w3.org/2000/svg}"


def parts(svg, tag):
    return ElementTree.fromstring(svg).findall(f"{SVG}{tag}")


def test_bars_have_the_lengths_of_what_they_show():
    planned = plan(deepseek(), devices=Devices(2**20))
    rects = [rect for rect in parts(draw(planned, "small"), "rect") if rect.find(f"{SVG}title") is not None]
    rows = [(planned.serving, "92"), (planned.training, "140"), (planned.recomputing, "188")]
    scales = []
    for memory, y in rows:
        row = {rect.get("fill"): float(rect.get("width")) for rect in rects if rect.get("y") == y}
        shown = {part: size for part, size in memory.items().items() if size}
        assert set(row) == {COLOURS[part] for part in shown}
        scales += [row[COLOURS[part]] / size for part, size in shown.items()]
    assert max(scales) == pytest.approx(min(scales), rel=0.02)


@pytest.mark.parametrize("config", [deepseek(), llama()])
@pytest.mark.parametrize("devices", [None, Devices(70_000), Devices(2**30, 2)])
@pytest.mark.parametrize("train", [False, True])
def test_everything_lies_within_the_frame(config, devices, train):
    svg = draw(plan(config, devices=devices, train=train), "small")
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    for element in root.iter():
        for key in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(key, 0)) <= WIDTH
        for key in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(key, 0)) <= HEIGHT
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", element.get("points", "")):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_axes_are_labelled_and_what_fits_is_marked():
    planned = plan(deepseek(), devices=Devices(400_000))
    words = [text.text for text in parts(draw(planned, "small"), "text")]
    assert "small: memory of the fullest rank" in words
    assert "context of each sequence, in tokens" in words
    assert words[words.index("391 KiB") + 1] == "device"
    assert f"{planned.largest_context} tokens fit" in words


def test_a_name_is_escaped():
    svg = draw(plan(llama()), "<a & b>")
    assert parts(svg, "title")[0].text == "<a & b>: memory"


@pytest.mark.parametrize("most", [1, 7, 1000, 1023, 1025, 3 * 2**30, 900 * 2**30])
def test_ticks_are_few_and_even(most):
    ticks = Scale(most, 0, 100).ticks(1024)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0 and ticks[-1] <= most
    assert len({after - before for before, after in pairwise(ticks)}) <= 2  # rounded to bytes


def frames(svg):
    """The labels of a drawing as left, top, right and bottom, each character taken for as wide as a wide one."""
    for text in parts(svg, "text"):
        wide = (9.5 if text.get("class") == "title" else 7.2) * len(text.text)
        x, y = float(text.get("x")), float(text.get("y"))
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[text.get("text-anchor")]
        yield text.text, (left, y - 11, left + wide, y + 2)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("config", [deepseek(), llama()])
@pytest.mark.parametrize("memory", [100_000, 200_000, 300_000, 330_000, 360_000, 400_000, 10**6, 2 * 10**6, 10**7])
@pytest.mark.parametrize(("context", "train"), [(16, False), (100, False), (64, True)])
def test_no_label_lies_on_another_or_on_the_line_of_the_device(config, memory, context, train):
    svg = draw(plan(config, devices=Devices(memory), train=train, context=context), "small")
    labels = list(frames(svg))
    for number, (one, (left, top, right, bottom)) in enumerate(labels):
        assert left >= 0 and right <= WIDTH, one
        for other, (left2, top2, right2, bottom2) in labels[number + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
            assert apart, f"{one!r} lies on {other!r}"
        for line in (line for line in parts(svg, "line") if line.get("class") == "limit"):
            x1, y1, x2, y2 = (float(line.get(name)) for name in ("x1", "y1", "x2", "y2"))
            assert x2 <= left or right <= x1 or y2 <= top or bottom <= y1, f"the device's line runs through {one!r}"

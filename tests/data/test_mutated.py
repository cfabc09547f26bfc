"""Rows and files with something wrong in them, drawn at random: an example or one sentence, and never anything else."""

import copy
import gzip
import io
import json
import random
import tarfile

import pytest
from PIL import Image

from modelwright.data.examples import BrokenRow, Place
from modelwright.data.formats import FORMATS, find_format
from modelwright.data.formats.pictures import PictureFolder
from modelwright.data.rows import Row
from modelwright.errors import LONGEST, RequestError

ASKED = [{"role": "user", "content": "<image>a <ref-object>"}, {"role": "assistant", "content": "<bbox>", "loss": True}]
OBJECTS = {"ref": ["x"], "bbox": [[1, 2, 3, 4]], "bbox_type": "real", "image_id": [0]}
PARTS = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}]
ROWS = [
    {"messages": ASKED, "images": ["a.png"], "objects": OBJECTS, "system": "s"},
    {"messages": [{"role": "user", "content": PARTS}]},
    {"conversations": [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}], "image": "a.png"},
    {"conversation": [{"human": "a", "assistant": "b"}]},
    {"instruction": "a", "input": "b", "output": "c"},
    {"query": "a", "response": "b", "history": [["c", "d"]]},
    {"prompt": ASKED[:1], "completion": ASKED[1:], "images": ["a.png"]},
    {"input_ids": [1, 2], "labels": [1, -100], "attention_mask": [1, 0]},
    {"image": {"path": "a.png", "bytes": None}, "caption": "x"},
    {"text": "x"},
]
VALUES = [None, True, 0, -1, 2**70, 1.5, float("nan"), "", "x", "<image>", [], [1], [[1, 2]], {}, {"role": "user"},
          b"b", [None], {"type": "image"}, "data:,x", "http://x/y"]  # fmt: skip


def places(value, here=()):
    """The way to each value inside of another."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*here, key)
        yield from places(each, (*here, key))


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_row_is_an_example_or_a_sentence(tmp_path, seed):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    draw, read, broken = random.Random(seed), 0, 0
    for _ in range(1000):
        row = copy.deepcopy(draw.choice(ROWS))
        *way, last = draw.choice([*places(row)])
        owner = row
        for key in way:
            owner = owner[key]
        if draw.random() < 0.2:
            del owner[last]
        else:
            owner[last] = copy.deepcopy(draw.choice(VALUES))
        for name in {find_format(row), draw.choice([*FORMATS])} - {None}:
            try:
                FORMATS[name](Row(Place("rows.jsonl", 1), row, tmp_path), PictureFolder())
                read += 1
            except BrokenRow as error:
                broken += 1
                assert len(str(error)) <= LONGEST and str(error).startswith("rows.jsonl:1: ")
    assert read > 100 and broken > 100


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("1.json", b'{"text": "a"}'), ("2.txt", b"words"), ("2.jpg", b"picture")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


LINES = b"".join(json.dumps({"text": f"row {number}"}).encode() + b"\n" for number in range(20))
FILES = {
    "a.jsonl": LINES,
    "a.json": json.dumps([{"text": "a", "more": {"list": [1, "]", {}]}}, {"text": "b"}]).encode(),
    "a.csv": b'text,images\n"a ""b"",\n",[]\nc,\n',
    "a.tar": tar(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.txt": "words\nand more \u00e9\n".encode(),
    "a.idx": b"MMIDIDX\0\0" + bytes([1, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
    + bytes([3, 0, 0, 0]) + bytes(8) + bytes(8) + bytes([1, 0, 0, 0, 0, 0, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_rows_or_a_sentence(folder, name):
    draw = random.Random(name)
    folder.write("a.bin", b"123456")
    folder.write(name, FILES[name])
    assert len(folder.open(name)) >= 1
    for _ in range(150):
        content = bytearray(FILES[name])
        for _ in range(draw.choice((1, 1, 3))):
            at = draw.randrange(len(content))
            content[at] = draw.choice((draw.randrange(256), content[at] ^ 1 << draw.randrange(8), ord('"'), ord("\n")))
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        folder.write(name, bytes(content))
        try:
            source = folder.open(name)
        except RequestError as error:
            assert len(str(error)) <= LONGEST
            continue
        for row in range(len(source)):
            try:
                assert source[row].content is not None
            except BrokenRow as error:
                assert len(str(error)) <= LONGEST

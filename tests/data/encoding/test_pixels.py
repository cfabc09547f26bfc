"""Pictures of pixels as documents."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from modelwright.data.documents import UNLEARNED
from modelwright.data.encoding import encoder_of
from modelwright.data.examples import BrokenRow, Example, Picture, PictureRef, Place, Text
from modelwright.errors import ConfigError
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor

HERE = Place("pixels", 2)
PALETTE = np.linspace(-1, 1, 16)[:, None].repeat(3, 1)


def encoder(seq_length: int = 64, **settings):
    processor = ImageGPTImageProcessor(**{"clusters": PALETTE, "size": 4} | settings)
    return encoder_of(processor, SimpleNamespace(labels="assistant", seq_length=seq_length, truncate="end")), processor


def test_every_pixel_is_foreseen_and_the_last_is_not_read(tmp_path):
    levels = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    Image.fromarray(levels).save(tmp_path / "a.png")
    make, processor = encoder()
    document = make(Example(HERE, Picture(PictureRef(str(tmp_path / "a.png")))))
    pixels = processor(Image.fromarray(levels), return_tensors="np")["input_ids"][0]
    assert document.ids.tolist() == [16, *pixels] and document.labels.tolist() == [UNLEARNED, *pixels]
    assert len(document) == 16 and document.counted == 16 and not document.reads_last
    assert not make.packs


def test_other_rows_and_bad_pictures_are_refused():
    make, _ = encoder()
    for content, said in (
        (Text("a"), "pixels:2: the row is not a picture alone, and the model learns the pixels of pictures"),
        (Picture(PictureRef("no.png")), "pixels:2: no such picture: no.png"),
    ):
        with pytest.raises(BrokenRow, match=said):
            make(Example(HERE, content))
    with pytest.raises(BrokenRow, match=r"has 16 tokens and data.seq_length allows 15$"):
        encoder(seq_length=15)[0](Example(HERE, Picture(PictureRef(_png()))))
    with pytest.raises(ConfigError, match="clusters must hold a palette"):
        encoder(clusters=None)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()

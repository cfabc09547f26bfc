"""Conversations with pictures as documents: those of the processor, and what of them is learned."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding import encoder_of
from modelwright.data.encoding.learning import Unlearned
from modelwright.data.examples import BrokenRow, Chat, Example, Message, Pair, Picture, PictureRef, Place, Text, Tokens
from modelwright.processing.images import load_image, picture_size

HERE = Place("pictures.jsonl", 3)
GROUNDED = "<|ref|>the cat<|/ref|><|det|>[[10, 20, 500, 999]]<|/det|>"


def encoder(processor: Any, labels: str = "assistant", seq_length: int = 8192, truncate: str = "refuse") -> Any:
    return encoder_of(processor, SimpleNamespace(labels=labels, seq_length=seq_length, truncate=truncate))


def png(width: int, height: int, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def chat(*turns: tuple) -> Example:
    """Turns of role, parts (bytes are pictures), and whether they are learned where that is said."""
    messages = []
    for role, parts, *learn in turns:
        listed = [parts] if isinstance(parts, str) else parts
        messages.append(Message(role, tuple(PictureRef(p) if isinstance(p, bytes) else p for p in listed), *learn))
    return Example(HERE, Chat(tuple(messages)))


def official(processor: Any, *turns: tuple) -> Any:
    """What the processor makes of the same conversation, in its official form."""
    messages = []
    for role, parts, *_ in turns:
        listed = [parts] if isinstance(parts, str) else parts
        words = "".join("<image>" if isinstance(part, bytes) else part for part in listed)
        images = [part for part in listed if isinstance(part, bytes)]
        messages.append({"role": role, "content": words} | ({"images": images} if images else {}))
    return processor.process_one(messages, inference_mode=False)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def learned(processor: Any, document: Document) -> list[str]:
    counts = np.flatnonzero(document.labels != UNLEARNED)
    stretches = np.split(counts, np.flatnonzero(np.diff(counts) > 1) + 1) if len(counts) else []
    return [processor.tokenizer.decode(document.ids[each], clean_up_tokenization_spaces=False) for each in stretches]


CONVERSATIONS = {
    "words": [("user", "hello"), ("assistant", "Hi."), ("user", "and?"), ("assistant", "")],
    "system": [("system", "Be kind."), ("user", "hello"), ("assistant", "Hi 🙂")],
    "picture": [("user", [png(90, 40), "\n<|ref|>the cat<|/ref|>."]), ("assistant", GROUNDED)],
    "two": [
        ("user", ["This ", png(900, 400), " or ", png(300, 800), "?"]),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "c"),
    ],
    "three": [("user", [png(900, 400), png(300, 800), png(20, 20)]), ("assistant", "three")],
    "literal": [("user", "what does <image> mean"), ("assistant", "it is <image> in words")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_documents_are_the_processors(processor, name):
    turns = CONVERSATIONS[name]
    theirs, document = official(processor, *turns), encoder(processor)(chat(*turns))
    assert document.ids.tolist() == theirs.input_ids.tolist() and document.ids[0] == processor.tokenizer.bos_token_id
    assert (document.ids == processor.tokenizer.bos_token_id).sum() == 1
    assert document.labels[1:].tolist() == theirs.labels[1:].tolist()  # whose first is never foreseen
    shows = bool(theirs.num_image_tokens)
    assert document.grids == (tuple(map(tuple, theirs.images_spatial_crop.tolist())) if shows else ())
    if shows:
        assert document.tiles is not None and document.picture_mask is not None
        assert (document.tiles == theirs.images).all() and (document.picture_mask == theirs.images_seq_mask).all()
        assert (document.labels[document.picture_mask] == UNLEARNED).all()
    end = "<｜end▁of▁sentence｜>"
    # ``<image>`` in words is cut so that it stays words: what is learned of it is one stretch all the same
    assert learned(processor, document) == [f"{words}{end}" for role, words, *_ in turns if role == "assistant"]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_an_outline_is_the_document_without_its_pixels(processor, name):
    example = chat(*CONVERSATIONS[name])
    whole, outline = encoder(processor)(example), encoder(processor).outline(example)
    assert outline.is_outline == bool(whole.grids) and outline.tiles is None
    assert (outline.ids == whole.ids).all() and (outline.labels == whole.labels).all() and outline.grids == whole.grids


def test_the_size_of_a_picture_is_known_without_decoding_it(tmp_path: Path):
    picture = Image.new("RGB", (40, 20), "blue")
    for orientation in range(1, 9):
        exif = exif_of(orientation)
        for kind in ("jpeg", "png", "webp"):
            file = tmp_path / f"{orientation}.{kind}"
            picture.save(file, exif=exif)
            assert picture_size(file) == picture_size(file.read_bytes()) == load_image(file).size
    picture = Image.effect_noise((40, 20), 99)
    picture.save(tmp_path / "6.jpeg", exif=exif_of(6))
    jpeg = (tmp_path / "6.jpeg").read_bytes()
    assert picture_size(jpeg[:-20]) == (20, 40)  # the rest is not looked at
    assert picture_size(picture) == (40, 20)


def test_which_answers_are_learned(processor):
    turns = [("user", [png(9, 9), "a"]), ("assistant", "one"), ("user", "b"), ("assistant", "two", False)]
    turns += [("user", "c"), ("assistant", "three")]
    end = "<｜end▁of▁sentence｜>"
    assert learned(processor, encoder(processor)(chat(*turns))) == [f"one{end}", f"three{end}"]
    assert learned(processor, encoder(processor, "last")(chat(*turns))) == [f"three{end}"]
    document = encoder(processor, "all")(chat(*turns))
    assert document.picture_mask is not None
    two = processor.tokenizer.encode(f"two{end}", add_special_tokens=False)
    assert (document.labels == UNLEARNED).sum() == 1 + document.picture_mask.sum() + len(two)


def test_a_last_question_gets_no_header(processor):
    document = encoder(processor)(chat(("user", "a"), ("assistant", "b"), ("user", "c")))
    assert processor.tokenizer.decode(document.ids).endswith("<|User|>: c\n\n")


def test_texts_pairs_and_tokens(processor):
    tokenizer, end = processor.tokenizer, "<｜end▁of▁sentence｜>"
    text = encoder(processor)(Example(HERE, Text("hello <image> world")))
    assert tokenizer.decode(text.ids) == f"<｜begin▁of▁sentence｜>hello <image> world{end}"
    assert (text.labels[1:] == text.ids[1:]).all() and text.picture_mask is None
    pair = encoder(processor)(Example(HERE, Pair("two and two is", " four")))
    assert learned(processor, pair) == [f" four{end}"]
    assert tokenizer.decode(pair.ids) == f"<｜begin▁of▁sentence｜>two and two is four{end}"
    whole = encoder(processor, "all")(Example(HERE, Pair("two", " four")))
    assert (whole.labels[1:] == whole.ids[1:]).all()
    assert encoder(processor)(Example(HERE, Tokens(np.array([5, 6])))).labels.tolist() == [UNLEARNED, 6]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (
            chat(("tool", "a"), ("assistant", "b")),
            r"messages\[0\] has role 'tool': it must be one of system, user, assis",
        ),
        (chat(("user", "a"), ("system", "b")), r"the system message must be the first, but it is messages\[1\]"),
        (chat(("user", "a"), ("assistant", [png(4, 4)])), r"messages\[1\] has role 'assistant': only a user may show"),
        (chat(("user", [b"no picture", "a"]), ("assistant", "b")), "picture bytes is not a picture that can be read"),
        (
            Example(HERE, Picture(PictureRef("a.png"))),
            "the row is a picture alone, and the model learns words: they stand under caption, text, query and "
            "response, or messages",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(processor, example, said):
    for make in (encoder(processor), encoder(processor).outline):
        with pytest.raises(BrokenRow, match=rf"^pictures.jsonl:3: .*{said}"):
            make(example)


def test_a_picture_that_does_not_fit_is_left_out_whole(processor):
    turns = [("user", [png(9, 9), "a"]), ("assistant", "one"), ("user", [png(9, 9), "b"]), ("assistant", "two")]
    whole = encoder(processor)(chat(*turns))
    assert whole.picture_mask is not None
    with pytest.raises(BrokenRow, match=rf"has {len(whole)} tokens and data.seq_length allows {len(whole) - 1}"):
        encoder(processor, seq_length=len(whole) - 1)(chat(*turns))
    picture = int(whole.picture_mask.sum()) // 2
    room = len(whole) - 12
    cut = encoder(processor, seq_length=room - picture // 2, truncate="end")(chat(*turns))
    assert len(cut.grids) == 1 and cut.tiles is not None and len(cut.tiles) == 2 and cut.picture_mask is not None
    assert cut.picture_mask.sum() == picture and learned(processor, cut) == ["one<｜end▁of▁sentence｜>"]
    with pytest.raises(Unlearned):
        encoder(processor, seq_length=picture, truncate="end")(chat(*turns))


def test_an_encoder_can_be_sent_to_another_process(processor):
    made = pickle.loads(pickle.dumps(encoder(processor)))
    example = chat(*CONVERSATIONS["picture"])
    assert (made(example).ids == encoder(processor)(example).ids).all()

"""Every format of rows: documented examples of ms-swift and others to hand-made values, and what is none."""

import base64
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from modelwright.data.examples import BrokenRow, Chat, Message, Pair, Picture, PictureRef, Place, Text
from modelwright.data.formats.pictures import open_picture
from modelwright.errors import RequestError
from modelwright.processing.grounding import parse_grounding


def png(size=(4, 4), exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG", **({} if exif is None else {"exif": exif}))
    return file.getvalue()


def said(role, *parts, learn=None):
    return Message(role, parts, learn)


@pytest.fixture
def shown(folder):
    """Pictures a.png (30 x 20) and b.png (10 x 10) beside the rows, as they are referred to."""
    return [
        PictureRef(str(folder.write(f"{name}.png", png(size)))) for name, size in (("a", (30, 20)), ("b", (10, 10)))
    ]


ASKED = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
CHATS = {
    "messages": {"messages": ASKED},
    "messages, other names": {
        "messages": [{"role": "<|User|>", "content": "1+1?"}, {"role": "<|Assistant|>", "content": "2"}]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
    "sharegpt of ms-swift": {"conversation": [{"human": "1+1?", "assistant": "2"}]},
    "sharegpt with roles": {"conversations": ASKED},
    "alpaca": {"instruction": "1+1?", "input": "", "output": "2"},
    "query": {"query": "1+1?", "response": "2"},
    "query with an empty history": {"query": "1+1?", "response": "2", "history": []},
}


@pytest.mark.parametrize("name", CHATS)
def test_all_forms_of_a_conversation_are_one(folder, name):
    source = folder.rows([CHATS[name]])
    assert source.format == name.split(",")[0].split(" ")[0]
    assert source[0].content == Chat((said("user", "1+1?"), said("assistant", "2")))


@pytest.mark.parametrize("name", ["sharegpt of ms-swift", "alpaca", "query", "messages"])
def test_a_system_text_comes_first(folder, name):
    chat = folder.content(CHATS[name] | {"system": "Be brief."})
    assert chat.messages[0] == said("system", "Be brief.")
    assert len(chat.messages) == 3


def test_ms_swifts_examples_of_text(folder):
    """Of its documentation of custom data sets."""
    history = {
        "system": "<s>",
        "query": "<query2>",
        "response": "<response2>",
        "history": [["<query1>", "<response1>"]],
    }
    words = [m.words for m in folder.content(history).messages]
    assert words == ["<s>", "<query1>", "<response1>", "<query2>", "<response2>"]
    alpaca = {"system": "<system>", "instruction": "<query-inst>", "input": "<query-input>", "output": "<response>"}
    assert [m.words for m in folder.content(alpaca).messages] == [
        "<system>",
        "<query-inst>\n<query-input>",
        "<response>",
    ]
    pretraining = {"messages": [{"role": "assistant", "content": "I love music"}]}
    assert folder.content(pretraining) == Chat((said("assistant", "I love music"),))


def test_roles_of_tools_are_one_and_an_unknown_role_is_listed(folder):
    turns = [("user", "Air?"), ("tool_response", "{}"), ("tool", "{}"), ("observation", "{}"), ("developer", "d")]
    chat = folder.content({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert [message.role for message in chat.messages] == ["user", "tool", "tool", "tool", "system"]
    reason = folder.reason({"messages": [{"role": "narrator", "content": "Once"}]})
    assert reason.startswith(
        "messages[0] has role 'narrator': it must be one of system, developer, deepseekapi-sys, user,"
    )


@pytest.mark.parametrize(
    ("given", "learn"),
    [({}, None), ({"loss": None}, None), ({"loss": False}, False), ({"loss": True}, True), ({"weight": 0}, False),
     ({"weight": 1}, True), ({"loss": 0, "weight": 0}, False), ({"weight": 1.0}, True), ({"train": False}, False),
     ({"train": True, "weight": 1}, True)],
)  # fmt: skip
def test_a_message_says_whether_it_is_learned(folder, given, learn):
    chat = folder.content({"messages": [ASKED[0], ASKED[1] | given]})
    assert chat.messages[1] == said("assistant", "2", learn=learn)


def test_a_weight_between_and_two_answers_to_one_question_are_refused(folder):
    for given, reason in (
        ({"weight": 0.5}, "messages[1].weight must be 0 or 1, got 0.5"),
        ({"loss": "no"}, "messages[1].loss must be true or false, got 'no'"),
        ({"loss": True, "weight": 0}, "messages[1] has loss True and weight 0: keep one"),
        ({"weight": 0, "train": True}, "messages[1] has weight 0 and train True: keep one"),
        ({"train": "false"}, "messages[1].train must be true or false, got 'false'"),
        ({"train_detail": []}, "messages[1] has 'train_detail', and a message is learned as a whole or not at all"),
        ({"loss_scale": 0.5}, "messages[1] has 'loss_scale', and a message is learned as a whole or not at all"),
    ):
        assert folder.reason({"messages": [ASKED[0], ASKED[1] | given]}) == reason


@pytest.mark.parametrize("name", ["image", "videos", "video", "audios", "audio"])
def test_what_a_message_shows_beside_its_pictures_is_refused(folder, name):
    reason = folder.reason({"messages": [ASKED[0] | {name: "a.png"}, ASKED[1]]})
    assert reason == f"messages[0] has {name!r}: pictures of a message are its 'images', and nothing else is shown"


def test_tokens_that_weigh_and_functions_are_refused(folder):
    for name in ("loss_scale", "loss_weights", "weights"):
        reason = folder.reason({"input_ids": [1, 2], name: [0, 0.5]})
        assert reason == f"it has {name!r}, and a token is learned or not: say so by a loss_mask of 0 and 1"
    reason = folder.reason({"messages": ASKED, "functions": [{"name": "f"}]})
    assert reason == "it has 'functions', which no model here is trained on: leave it out"


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"messages": ASKED, "images": None, "tools": [], "system": "s"}, []),
        ({"messages": [ASKED[0] | {"name": "Ann"}, ASKED[1] | {"loss": True, "mask": 1}], "weight": 0, "rejected": "3"},
         ["weight", "rejected", "messages[].name", "messages[].mask"]),
        ({"conversations": [{"from": "human", "value": "q", "audio": None}, {"from": "gpt", "value": "a"}], "id": 0},
         ["id"]),
        ({"instruction": "i", "input": "", "output": "o", "history": [["a", "b"]], "kto_tag": False}, ["kto_tag"]),
        ({"query": "q", "response": "r", "rejected_response": "s"}, ["rejected_response"]),
        ({"prompt": ASKED[:1], "completion": [ASKED[1] | {"prefix": True}], "label": True},
         ["label", "completion[].prefix"]),
        ({"text": "t", "history": "h", "meta": {"a": 1}}, ["history", "meta"]),
        ({"input_ids": [1, 2], "labels": [1, 2], "length": 2, "token_type_ids": [0, 0]}, ["length", "token_type_ids"]),
    ],
)  # fmt: skip
def test_names_that_change_nothing_are_told(folder, row, unread):
    source = folder.rows([row, row])
    assert source[0].content is not None and source.unread() == unread


def test_broken_rows_hide_no_names(folder):
    folder.write("rows.jsonl", '{"text": "t"}\n{"text":\n{"text": "u", "id": 1}\n')
    assert folder.open("rows.jsonl").unread() == ["id"]


def test_prompt_and_completion_are_words_or_messages(folder):
    assert folder.content({"prompt": "2+2=", "completion": "4"}) == Pair("2+2=", "4")
    assert folder.content({"prompt": "2+2=", "completion": "4", "images": [], "system": None}) == Pair("2+2=", "4")
    chat = folder.content({"prompt": ASKED + ASKED[:1], "completion": ASKED[1:]})
    assert [(message.role, message.learn) for message in chat.messages] == [
        ("user", None), ("assistant", False), ("user", None), ("assistant", None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_tokens_say_what_is_learned(folder, name):
    """As TRL writes them, beside labels or alone; of several each must agree."""
    alone = folder.content({"input_ids": [5, 6, 7], name: [0, 1, 1]})
    assert alone.labels.tolist() == [-100, 6, 7]
    beside = folder.content(
        {"input_ids": [5, 6, 7], "labels": [5, 6, -100], "attention_mask": [1, 1, 0], name: [0, 1, 1]}
    )
    assert beside.ids.tolist() == [5, 6] and beside.labels.tolist() == [-100, 6]
    two = folder.content({"input_ids": [5, 6, 7], "loss_mask": [1, 0, 1], "completion_mask": [0, 1, 1]})
    assert two.labels.tolist() == [-100, -100, 7]
    wrong = folder.reason({"input_ids": [5, 6, 7], name: [1]})
    assert wrong == f"it has 3 input_ids and 1 {name}: there must be one for each"


@pytest.mark.parametrize(
    "packed", [{"position_ids": [0, 1, 0]}, {"seq_lengths": [2, 1]}, {"cu_seqlens": [0, 2, 3]}, {"seq_idx": [0, 0, 1]}]
)
def test_tokens_that_are_packed_already_are_refused(folder, packed):
    assert folder.reason({"input_ids": [5, 6, 7]} | packed).startswith(f"its {''.join(packed)} say that it is packed")
    assert folder.content({"input_ids": [5, 6, 7], "position_ids": [0, 1, 2], "seq_idx": None}).labels is None


def test_tokens_come_with_or_without_labels(folder):
    tokens = folder.content({"input_ids": [5, 6, 7]})
    assert (tokens.ids.tolist(), tokens.ids.dtype, tokens.labels) == ([5, 6, 7], np.int64, None)
    tokens = folder.content({"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]})
    assert (tokens.ids.tolist(), tokens.labels.tolist()) == ([5, 6, 7], [-100, 6, 7])


TOKENS = {
    "its input_ids are empty": {"input_ids": []},
    "input_ids must be at least 0, got -1": {"input_ids": [1, -1]},
    "input_ids must be a list of whole numbers, got [1.5]": {"input_ids": [1.5]},
    "input_ids must be a list of whole numbers, got [True]": {"input_ids": [True]},
    "input_ids must be a list of whole numbers, got '12'": {"input_ids": "12"},
    "input_ids must be a list of whole numbers, got [[1], [2]]": {"input_ids": [[1], [2]]},
    "input_ids must be a list of whole numbers, got [[1], [2, 3]]": {"input_ids": [[1], [2, 3]]},
    "input_ids must be a list of whole numbers, got [1, None]": {"input_ids": [1, None]},
    "input_ids must be a list of whole numbers, got [36893488147419103232]": {"input_ids": [2**65]},
    "it has 2 input_ids and 1 labels: there must be one for each": {"input_ids": [1, 2], "labels": [1]},
    "labels must be tokens or -100, got -1": {"input_ids": [1, 2], "labels": [-1, 1]},
    "its attention_mask hides every token": {"input_ids": [1, 2], "attention_mask": [0, 0]},
}


@pytest.mark.parametrize(("reason", "row"), TOKENS.items(), ids=TOKENS)
def test_what_are_no_tokens_is_told(folder, reason, row):
    assert folder.reason(row) == reason


def test_pictures_stand_where_messages_say(folder, shown):
    first, second = shown
    both, puppy = {"images": ["a.png", "b.png"]}, "<image>is a puppy, <image>is a kitten"
    asked = {"messages": [{"role": "user", "content": "<image><image>What is the difference?"}, ASKED[1]]} | both
    pretraining = {"messages": [{"role": "assistant", "content": puppy}]} | both
    swift = folder.rows([asked, pretraining, {"messages": ASKED}])
    assert swift.format == "ms-swift"
    assert swift[0].content.messages[0] == said("user", first, second, "What is the difference?")
    assert swift[1].content.messages == (said("assistant", first, "is a puppy, ", second, "is a kitten"),)
    assert swift[2].content == Chat((said("user", "1+1?"), said("assistant", "2")))


def test_llava_has_one_picture_or_several(folder, shown):
    first, second = shown
    turns = [{"from": "human", "value": "What is this?\n<image>"}, {"from": "gpt", "value": "A <image>."}]
    source = folder.rows([{"id": "1", "image": ["a.png", "b.png"], "conversations": turns}])
    assert source.format == "llava"
    assert source[0].content.messages == (said("user", "What is this?\n", first), said("assistant", "A ", second, "."))
    one = folder.content({"image": "b.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]})
    assert one.messages == (said("user", second, "\nWhat?"),)


def test_pictures_without_a_place_come_before_the_first_question(folder, shown):
    chat = folder.content({"messages": [{"role": "system", "content": "s"}, *ASKED], "images": ["a.png"]})
    assert chat.messages[1] == said("user", shown[0], "1+1?")


def test_the_word_image_is_text_where_a_row_brings_no_picture(folder):
    chat = folder.content({"messages": [{"role": "user", "content": "What does <image> mean in HTML?"}]})
    assert chat.messages == (said("user", "What does <image> mean in HTML?"),)


def test_official_messages_bring_their_own_pictures(folder, shown):
    turns = [
        {"role": "<|User|>", "content": "<image>\nWhat?", "images": ["b.png"]},
        {"role": "<|Assistant|>", "content": ""},
    ]
    assert folder.content({"messages": turns}).messages == (said("user", shown[1], "\nWhat?"), said("assistant"))


def test_openais_parts_are_joined_by_lines_as_when_a_model_is_asked(folder, shown):
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [
        {"type": "text", "text": "This <image>"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": "\nand this?"},
    ]
    chat = folder.content({"messages": [{"role": "user", "content": parts}, ASKED[1]]})
    low = PictureRef(shown[0].source, "low")
    assert chat.messages[0] == said("user", "This <image>", "\n", low, "\n", PictureRef(data), "\nand this?")
    given = folder.content(
        {"messages": [{"role": "user", "content": [{"type": "image"}, "Why?"]}], "images": ["b.png"]}
    )
    assert given.messages == (said("user", shown[1], "\n", "Why?"),)


def test_captions_and_pictures_alone(folder, shown):
    rows = folder.rows([{"image": "a.png", "caption": "a dog"}])
    assert (rows.format, rows[0].content) == ("caption", Chat((said("user", shown[0]), said("assistant", "a dog"))))
    rows = folder.rows([{"image": "a.png"}])
    assert (rows.format, rows[0].content) == ("picture", Picture(shown[0]))
    folder.write("set/2.jpg", png())
    folder.write("set/1.PNG", png())
    rows = folder.open("set")
    paths = [str(folder.path / "set" / name) for name in ("1.PNG", "2.jpg")]
    assert (rows.format, [rows[n].content for n in (0, 1)]) == ("picture", [Picture(PictureRef(p)) for p in paths])
    assert rows[1].place == Place(paths[1], 1)
    assert [entry["sha256"] for entry in rows.fingerprint()] == [hashlib.sha256(png()).hexdigest()] * 2


PICTURES = {
    "http://example.com/a.png": "pictures are not fetched from the network ('http://example.com/a.png'): save them",
    "HTTPS://example.com/a.png": "pictures are not fetched from the network",
    "s3://bucket/a.png": "pictures are not fetched from the network",
    "absent.png": "no such picture: 'absent.png' in {folder}",
    "/absent.png": "no such picture: '/absent.png'",
    "a\0.png": "no such picture: 'a\\x00.png'",
    "x" * 5000: "no such picture: 'xxx",
    "": "a picture must be a path, a data: URL or bytes, got ''",
    7: "a picture must be a path, a data: URL or bytes, got 7",
    ".": "no such picture: '.' in {folder}",
}


@pytest.mark.parametrize(("given", "reason"), PICTURES.items(), ids=[str(given)[:20] for given in PICTURES])
def test_a_picture_that_cannot_be_opened_is_told_before_it_is(folder, shown, given, reason):
    row = {"messages": [{"role": "user", "content": "<image>"}], "images": [given]}
    assert folder.reason(row).startswith(reason.format(folder=folder.path))


def test_a_root_holds_the_pictures_and_none_leaves_it(folder, shown):
    inside = PictureRef(str(folder.write("root/in/c.png", png())))
    row = {"messages": [{"role": "user", "content": "<image>"}]}
    for path in (
        "in/c.png",
        "in/../in/c.png",
        str(folder.path / "root/in/c.png"),
        f"file://{folder.path}/root/in/c.png",
    ):
        assert folder.content(row | {"images": [path]}, root="root").pictures == (inside,)
    for path in ("../a.png", "in/../../a.png", str(folder.path / "a.png"), f"file://{folder.path}/a.png"):
        reason = folder.reason(row | {"images": [path]}, root="root")
        assert reason.endswith(f"lies outside of data.root, {folder.path / 'root'}")
    assert folder.content(row | {"images": ["root/../a.png"]}).pictures == (shown[0],)


def test_opening_a_picture_that_is_none_or_too_large_breaks_its_row(folder, monkeypatch):
    place = Place("rows.jsonl", 5)
    assert open_picture(PictureRef(png((3, 2))), place).size == (3, 2)
    with pytest.raises(BrokenRow, match=r"rows\.jsonl:5: picture bytes is not a picture that can be read"):
        open_picture(PictureRef(b"no picture"), place)
    with pytest.raises(BrokenRow, match=r"rows\.jsonl:5: .*absent\.png"):
        open_picture(PictureRef("absent.png"), place)
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = png()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]
    with pytest.raises(BrokenRow, match=r"rows\.jsonl:5: .* too large"):
        open_picture(PictureRef(bomb), place)


def grounded(*contents, **objects):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]
    return {"messages": turns, "images": ["a.png"], "objects": objects}


def test_ms_swifts_objects_are_written_as_the_model_writes_them(folder, shown):
    """Its documented rows, with boxes that fit these pictures: 30 x 20 pixels, of which 999 are the whole width."""
    row = grounded("<image>Describe the image.", "<ref-object><bbox> and <ref-object><bbox> are playing on the beach",
                   ref=["a dog", "a woman"], bbox=[[3, 2, 15, 10], [0, 0, 30, 20]])  # fmt: skip
    answer = folder.content(row).messages[1].words
    assert answer == (
        "<|ref|>a dog<|/ref|><|det|>[[100, 100, 500, 500]]<|/det|> and "
        "<|ref|>a woman<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|> are playing on the beach"
    )
    [dog, woman] = parse_grounding(answer, (30, 20))
    assert np.allclose(dog.boxes, [(3, 2, 15, 10)], atol=0.02) and woman.boxes == ((0, 0, 30, 20),)
    row = grounded("<image>Find the <ref-object> in the image", "<bbox><bbox>",
                   ref=["sheep"], bbox=[[3, 2, 15, 10], [15, 10, 30, 20]])  # fmt: skip
    question, answer = folder.content(row).messages
    assert question == said("user", shown[0], "Find the <|ref|>sheep<|/ref|> in the image")
    assert answer == said("assistant", "<|det|>[[100, 100, 500, 500], [500, 500, 999, 999]]<|/det|>")


def test_boxes_are_shares_or_pixels_of_the_picture_that_they_name(folder, shown):
    row = grounded("<image>", "<bbox>", bbox=[[0.1, 0.2, 0.5, 1]], bbox_type="norm1")
    assert folder.content(row).messages[1].words == "<|det|>[[100, 200, 500, 999]]<|/det|>"
    row = grounded("<image><image>", "<bbox> <bbox>", bbox=[[1, 2, 5, 10], [3, 4, 15, 20]], image_id=[1, 0])
    words = folder.content(row | {"images": ["a.png", "b.png"]}).messages[1].words
    assert words == "<|det|>[[100, 200, 500, 999], [100, 200, 500, 999]]<|/det|>"


def test_boxes_are_of_the_picture_as_it_is_seen(folder):
    """A camera's picture of 30 x 20 that is to be turned stands 20 x 30."""
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.write("a.png", png((30, 20), exif))
    row = grounded("<image>", "<bbox>", bbox=[[2, 3, 10, 30]])
    assert folder.content(row).messages[1].words == "<|det|>[[100, 100, 500, 999]]<|/det|>"


OBJECTS = {
    "a box must be the four numbers x1, y1, x2, y2, got [615, 226]": {"bbox": [[615, 226]]},
    "the box [0, 0, 31, 20] lies outside of its picture, which is 30 x 20": {"bbox": [[0, 0, 31, 20]]},
    "the box [-1, 0, 3, 4] lies outside of its picture, which is 30 x 20": {"bbox": [[-1, 0, 3, 4]]},
    "the box [9, 9, 3, 12] is [300, 450, 100, 599] in 0..999: x1 must be less than x2, and y1 less than y2": {
        "bbox": [[9, 9, 3, 12]]
    },
    "objects.bbox_type must be one of real, norm1, got 'norm1000'": {"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1000"},
    "objects.image_id names picture 1, and there are 1": {"bbox": [[1, 2, 3, 4]], "image_id": [1]},
    "objects.image_id has 2 entries, and objects.bbox 1": {"bbox": [[1, 2, 3, 4]], "image_id": [0, 0]},
    "its messages hold more <bbox> than its objects, which are 0": {"bbox": [], "ref": []},
    "its messages hold 1 <bbox>, and its objects 2 of them": {"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]},
    "its messages hold 0 <ref-object>, and its objects 1 of them": {"bbox": [[1, 2, 3, 4]], "ref": ["dog"]},
    "a name of objects.ref must be words without grounding tags, got '<|det|>'": {"bbox": [], "ref": ["<|det|>"]},
    "a box must be the four numbers x1, y1, x2, y2, got ['1', 2, 3, 4]": {"bbox": [["1", 2, 3, 4]]},
}  # fmt: skip


@pytest.mark.parametrize(("reason", "objects"), OBJECTS.items(), ids=OBJECTS)
def test_objects_that_do_not_fit_are_told(folder, shown, reason, objects):
    assert folder.reason(grounded("<image>Where?", "<bbox>", **objects)) == reason


BESIDE = {
    "images": ["a.png"],
    "image": "a.png",
    "objects": {"ref": ["sheep"], "bbox": [[1, 2, 3, 4]]},
    "videos": ["a.mp4"],
    "tools": [{"name": "look"}],
    "system": "Be brief.",
    "history": [["a", "b"]],
}
"""What may stand beside the words of a row."""
ROWS = {
    "it has no messages": {"messages": []},
    "messages must be a list, got 'hello'": {"messages": "hello"},
    "messages[0] must be a mapping with 'role' and 'content', got 'hello'": {"messages": ["hello"]},
    "messages[0] has no 'content': its names are role": {"messages": [{"role": "user"}]},
    "messages[0].content must be a list, got 7": {"messages": [{"role": "user", "content": 7}]},
    "messages[0].content[0] must be a part of type text, image_url or image, got {'type': 'video'}": {
        "messages": [{"role": "user", "content": [{"type": "video"}]}]
    },
    "its messages: 1 <image> placeholder but 2 pictures; there must be as many of one as of the other": {
        "messages": [{"role": "user", "content": "<image>"}],
        "images": ["a.png", "b.png"],
    },
    "its messages: 2 <image> placeholders but 1 picture; there must be as many of one as of the other": {
        "messages": [{"role": "user", "content": "<image><image>"}],
        "images": ["a.png"],
    },
    "messages[0]: 1 <image> placeholder but 0 pictures; there must be as many of one as of the other": {
        "messages": [{"role": "user", "content": "<image>", "images": []}]
    },
    "it has both 'images' and 'image': name all pictures in one of them": {
        "messages": [{"role": "user", "content": "<image>"}],
        "images": ["a.png"],
        "image": "b.png",
    },
    "it has 'videos', which no model here is trained on: leave it out": {"messages": ASKED, "videos": ["a.mp4"]},
    "it has 'tools', which no model here is trained on: leave it out": {"messages": ASKED, "tools": "[{}]"},
    "messages[1] has 'tool_calls', which no model here is trained on: write the call as text": {
        "messages": [ASKED[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]
    },
    "messages[1] has 'reasoning_content', which is no part of its content: write it into the content": {
        "messages": [ASKED[0], {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    },
    "messages[1].content is null, which would teach an answer without words": {
        "messages": [ASKED[0], {"role": "assistant", "content": None}]
    },
    "an entry of history must be a question and an answer": {"query": "a", "response": "b", "history": [["c"]]},
    "a turn of conversation must have 'human' and 'assistant', got {'human': 'a'}": {"conversation": [{"human": "a"}]},
    "completion must be a string, got 4": {"prompt": "2+2=", "completion": 4},
    **{
        f"it has {name!r}, which rows of {format} have no place for: write all of it as messages": row | {name: value}
        for format, row, names in (
            ("words without a chat format", {"prompt": "2+2=", "completion": "4"}, BESIDE),
            ("one picture and its caption", {"image": "a.png", "caption": "A farm."}, BESIDE.keys() - {"image"}),
            ("text alone", {"text": "A farm."}, ["images", "objects", "videos"]),
            ("tokens", {"input_ids": [5, 6]}, ["images", "image", "objects", "videos"]),
            ("messages", {"messages": ASKED}, ["history"]),
            ("conversations", {"conversations": ASKED}, ["history"]),
        )
        for name, value in BESIDE.items()
        if name in names
    },
    "output must be a string, got None": {"instruction": "a", "output": None},
}


@pytest.mark.parametrize(("reason", "row"), ROWS.items(), ids=ROWS)
def test_a_row_that_is_none_says_why(folder, shown, reason, row):
    assert folder.reason(row) == reason


@pytest.mark.parametrize("empty", [None, [], ""])
def test_a_picture_is_seen_beside_an_empty_name(folder, shown, empty):
    row = {"messages": [{"role": "user", "content": "<image>"}, ASKED[-1]]}
    one = folder.content(row | {"images": ["a.png"], "image": empty})
    assert one == folder.content(row | {"images": empty, "image": "a.png"}) == folder.content(row | {"image": "a.png"})


def test_a_stated_format_is_kept_to(folder):
    row = {"text": "plain", "messages": ASKED}
    assert folder.rows([row]).format == "messages"
    assert folder.content(row, format="text") == Text("plain")
    assert folder.reason({"text": "a"}, format="alpaca") == "it has no 'instruction': its names are text"


def test_every_error_is_a_request_error(folder):
    with pytest.raises(RequestError):
        folder.content({"text": 7})


@pytest.mark.parametrize("none", [None, []])
def test_a_caption_of_no_picture_is_broken(folder, none):
    rows = folder.rows([{"image": none, "caption": "a dog"}])
    with pytest.raises(BrokenRow, match="image"):
        rows[0]

"""What a tokenizer puts around a text: its files decide, in both directions, and no mark stands there twice."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, processors

from modelwright.processing.marks import encode_text
from modelwright.processing.tokenizer import read_fast_tokenizer
from tests.checkpoints.tiny import GOLDEN

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
HI = [42, 75]  # "Hi" in the golden vocabulary; its marks are 0 and 1
SIDES = {None: None, True: True, False: False}


def template(begin: bool, end: bool):
    single = f"{BOS + ':0 ' * begin if begin else ''}$A:0{' ' + EOS + ':0' if end else ''}"
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=[(BOS, 0), (EOS, 1)])


PROCESSORS = {
    "none": (None, False, False),
    "offsets": (processors.ByteLevel(trim_offsets=True), False, False),
    "begin": (template(True, False), True, False),
    "both": (processors.Sequence([processors.ByteLevel(trim_offsets=True), template(True, True)]), True, True),
}


def folder_with(folder, processor, **settings):
    """A copy of the golden tokenizer with a post-processor and these settings."""
    shutil.copytree(GOLDEN / "tokenizer", folder, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if processor is not None:
        tokenizer.post_processor = processor
        tokenizer.save(str(folder / "tokenizer.json"))
    values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    values = {name: value for name, value in values.items() if name not in ("add_bos_token", "add_eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(values | settings), "utf-8")
    return folder


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("begin", [None, True, False])
@pytest.mark.parametrize("end", [None, True, False])
def test_the_two_settings_decide_and_where_they_are_silent_the_file_does(tmp_path, kind, begin, end):
    processor, begins, ends = PROCESSORS[kind]
    settings = {"add_bos_token": begin} if begin is not None else {}
    settings |= {"add_eos_token": end}  # null is silence
    tokenizer = read_fast_tokenizer(folder_with(tmp_path, processor, **settings))
    first = [0] * (begins if begin is None else begin)
    last = [1] * (ends if end is None else end)
    assert tokenizer.encode("Hi") == first + HI + last == encode_text(tokenizer, "Hi")
    assert tokenizer(["Hi", "Hi"])["input_ids"] == [first + HI + last] * 2
    assert tokenizer.encode("Hi", add_special_tokens=False) == HI
    assert encode_text(tokenizer, BOS + "Hi") == [0, *HI, *last]
    assert encode_text(tokenizer, BOS + "Hi" + EOS) == [0, *HI, 1]
    trims = kind in ("offsets", "both")
    assert tokenizer("Hi you", return_offsets_mapping=True)["offset_mapping"][len(first) + 2] == (3 if trims else 2, 6)


def test_what_is_written_in_the_middle_or_twice_stays(tmp_path):
    tokenizer = read_fast_tokenizer(folder_with(tmp_path, None, add_bos_token=True))
    assert encode_text(tokenizer, f"Hi{BOS}Hi") == [0, *HI, 0, *HI]
    assert encode_text(tokenizer, f"{BOS}{BOS}Hi") == [0, 0, *HI]


def test_a_saved_tokenizer_puts_the_same_marks(tmp_path):
    tokenizer = read_fast_tokenizer(folder_with(tmp_path / "one", None, add_bos_token=True))
    tokenizer.save_pretrained(tmp_path / "two")
    assert read_fast_tokenizer(tmp_path / "two").encode("Hi") == [0, *HI]


def test_a_mark_that_the_tokenizer_lacks_is_not_put(tmp_path):
    folder = folder_with(tmp_path, None, add_bos_token=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del settings["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    assert read_fast_tokenizer(folder).encode("Hi") == HI

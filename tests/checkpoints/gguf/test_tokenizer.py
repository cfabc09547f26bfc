"""Tokenizers through GGUF: each way to split as the published tokenizers do, and SentencePiece merged by hand."""

import json
import shutil
from itertools import pairwise

import gguf
import pytest

from modelwright.checkpoints.convert import convert
from modelwright.errors import CheckpointError
from modelwright.serving.load import load
from tests.checkpoints.gguf.files import TOKENS, llama_metadata, llama_tensors, write_file
from tests.checkpoints.gguf.test_llama import written
from tests.checkpoints.gguf.tokenizers import SPLIT_AS, TEXTS, write_byte_level, write_sentence_piece

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("split", [*SPLIT_AS, "sentencepiece"])
def test_texts_become_the_same_tokens_and_come_back(tmp_path, split):
    folder, path = tmp_path / "hf", tmp_path / "model.gguf"
    written(folder, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    write_sentence_piece(folder) if split == "sentencepiece" else write_byte_level(folder, split)
    convert(folder, path)
    given, read = load(folder).tokenizer, load(path).tokenizer
    for text in TEXTS:
        ids = given(text)["input_ids"]
        assert read(text)["input_ids"] == ids
        assert read.decode(ids) == given.decode(ids) and read.encode(text, add_special_tokens=False) == given.encode(
            text, add_special_tokens=False
        )
    assert len(read) == len(given)
    assert read.special_tokens_map == given.special_tokens_map
    assert read.apply_chat_template(MESSAGES, tokenize=False) == given.apply_chat_template(MESSAGES, tokenize=False)


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own way: of all neighbours whose whole is a piece, the best one merges, the leftmost first."""
    pieces = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        found = [(scores.get(a + b), -i) for i, (a, b) in enumerate(pairwise(pieces))]
        known = [each for each in found if each[0] is not None]
        if not known:
            return [part for piece in pieces for part in ([piece] if piece in scores else as_bytes(piece))]
        place = -max(known)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]


def as_bytes(piece: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in piece.encode()]


@pytest.mark.parametrize("text", ["ab", "a b", "abab ab  b", "a\u00e9b\n", "", "\u2581ab"])
def test_sentence_pieces_merge_by_their_scores(tmp_path, text):
    metadata = llama_metadata()
    path = write_file(tmp_path / "model.gguf", metadata, llama_tensors("F16"))
    tokenizer = load(path).tokenizer
    scores = dict(zip(TOKENS, metadata["tokenizer.ggml.scores"], strict=True))
    wanted = merged(text, scores) if text else []
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *wanted]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("\u2581", " ")


def test_what_ends_a_turn_ends_a_text_too(tmp_path):
    metadata = llama_metadata(**{"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7})
    model = load(write_file(tmp_path / "model.gguf", metadata, llama_tensors("F16"))).model
    assert model.generation_config.eos_token_id == [2, 5, 7]
    model.save_pretrained(tmp_path / "hf")
    load(tmp_path / "model.gguf").tokenizer.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "again.gguf")
    assert load(tmp_path / "again.gguf").model.generation_config.eos_token_id == [2, 5, 7]


def test_beginning_and_end_are_added_as_the_file_says(tmp_path):
    metadata = llama_metadata(**{"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True})
    tokenizer = load(write_file(tmp_path / "model.gguf", metadata, llama_tensors("F16"))).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab").input_ids) == ["\u2581ab", "</s>"]


def metaspace(scheme):
    """As SentencePiece tokenizers are saved that were converted with ``legacy: false``."""

    def change(content):
        content["normalizer"] = None
        content["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        }

    return change


def as_llama_3(content):
    """Its post-processor is a sequence, of which the second part adds the beginning."""
    first = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    content["post_processor"] = {"type": "Sequence", "processors": [first, content["post_processor"]]}


@pytest.mark.parametrize(
    ("split", "change", "lost"),
    [
        ("llama-bpe", as_llama_3, ["add_bos_token"]),
        ("sentencepiece", metaspace("always"), []),
        ("sentencepiece", metaspace("first"), []),
        ("sentencepiece", metaspace("never"), []),
    ],
    ids=["llama 3", "always", "first", "never"],
)
def test_what_the_file_of_a_tokenizer_says_in_other_ways_comes_back(tmp_path, split, change, lost):
    folder, path = tmp_path / "hf", tmp_path / "model.gguf"
    written(folder, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    write_sentence_piece(folder) if split == "sentencepiece" else write_byte_level(folder, split)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings = {name: value for name, value in settings.items() if name not in lost}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    convert(folder, path)
    given, read = load(folder).tokenizer, load(path).tokenizer
    for text in ("Hello", "Hello there", "a\nb", "a  b"):
        assert read(text)["input_ids"] == given(text)["input_ids"], text
    assert given("Hello")["input_ids"][0] == given.bos_token_id


@pytest.mark.parametrize("others", [{}, {"tool_use": "{{ tools }}"}], ids=["one", "two"])
def test_special_tokens_may_be_named_in_a_map_and_templates_have_names(tmp_path, others):
    folder, path = tmp_path / "hf", tmp_path / "model.gguf"
    written(folder, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    named = {name: settings.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    templates = {"default": settings["chat_template"], **others}
    settings["chat_template"] = [{"name": name, "template": each} for name, each in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named), "utf-8")
    convert(folder, path)
    read = load(path).tokenizer
    assert {name: getattr(read, name) for name in named} == named
    assert read("Hello")["input_ids"][0] == read.bos_token_id
    assert read.apply_chat_template(MESSAGES, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"


def folder_with(tmp_path, split, **fields):
    """A Llama's folder with a tokenizer that splits so; ``fields`` are of its config."""
    folder = tmp_path / "hf"
    written(folder, hidden_size=16, intermediate_size=16, num_attention_heads=2, **fields)
    write_sentence_piece(folder) if split == "sentencepiece" else write_byte_level(folder, split)
    return folder


@pytest.mark.parametrize("place", ["settings", "files", "older file"])
def test_templates_with_names_are_those_that_the_gguf_package_writes_and_come_back(tmp_path, place):
    folder = folder_with(tmp_path, "llama-bpe")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    templates = {"default": settings.pop("chat_template"), "tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    usual = tmp_path / "usual"  # older packages read no other place
    shutil.copytree(folder, usual)
    (usual / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": listed}), "utf-8")
    if place == "settings":
        settings["chat_template"] = listed
    elif place == "older file":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": listed}), "utf-8")
    else:
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text(templates["default"], "utf-8")
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(templates[name], "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    convert(folder, tmp_path / "model.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    gguf.SpecialVocab(usual).add_to_gguf(writer, quiet=True)
    theirs = {key: value.value for part in writer.kv_data for key, value in part.items() if "chat_template" in key}
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    found = {key: fields[key].contents() for key in fields if "chat_template" in key}
    assert found == theirs | {"tokenizer.chat_templates": sorted(theirs["tokenizer.chat_templates"])}
    assert load(tmp_path / "model.gguf").tokenizer.chat_template == templates


def metadata_in(path):
    """The ``tokenizer.ggml`` values of a file, as the gguf package reads them."""
    fields = gguf.GGUFReader(path).fields
    prefix = "tokenizer.ggml."
    return {key.removeprefix(prefix): fields[key].contents() for key in fields if key.startswith(prefix)}


@pytest.mark.parametrize("split", ["llama-bpe", "qwen2", "sentencepiece"])
def test_a_tokenizer_without_settings_is_named_by_the_config_as_the_gguf_package_does(tmp_path, split):
    ids = {"bos_token_id": 1, "eos_token_id": 2} | ({} if split == "sentencepiece" else {"pad_token_id": 0})
    folder = folder_with(tmp_path, split, **ids)
    (folder / "tokenizer_config.json").unlink()
    convert(folder, tmp_path / "model.gguf")
    found, theirs = metadata_in(tmp_path / "model.gguf"), gguf.SpecialVocab(folder)
    assert {name: found[f"{long}_token_id"] for name, long in LONG.items() if f"{long}_token_id" in found} == {
        name: place for name, place in theirs.special_token_ids.items() if name != "unk"
    } | ({"unk": 0} if split == "sentencepiece" else {})
    given, read = load(folder).tokenizer, load(tmp_path / "model.gguf").tokenizer
    assert found["add_bos_token"] == (given("a")["input_ids"][0] == 1)
    for text in TEXTS:
        assert read(text)["input_ids"] == given(text)["input_ids"]


LONG = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""The gguf package's names of special tokens, and those in a file."""


def test_a_config_names_no_ordinary_token_and_overrides_no_settings(tmp_path):
    folder = folder_with(tmp_path, "qwen2", bos_token_id=9)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").unlink()
    convert(folder, tmp_path / "ordinary.gguf")
    assert "bos_token_id" not in metadata_in(tmp_path / "ordinary.gguf")
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"bos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": None}), "utf-8")
    convert(folder, tmp_path / "said.gguf")
    assert "bos_token_id" not in metadata_in(tmp_path / "said.gguf")


@pytest.mark.parametrize(("own", "message"), [(True, r"\[2, 5, 6, 7\]"), (False, r"\[4, 5, 6, 7\]")])
def test_more_ends_than_a_file_can_name_are_refused(tmp_path, own, message):
    folder = folder_with(tmp_path, "llama-bpe")
    if not own:
        (folder / "tokenizer_config.json").unlink()
    ends = {"eos_token_id": [2 if own else 4, 5, 6, 7]}
    (folder / "generation_config.json").write_text(json.dumps(ends), "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"eos_token_id": ends["eos_token_id"][0]}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CheckpointError, match=f"a text ends at the tokens {message}, and a GGUF file names 3 at most"):
        convert(folder, tmp_path / "model.gguf")
    ends["eos_token_id"].pop()
    (folder / "generation_config.json").write_text(json.dumps(ends), "utf-8")
    convert(folder, tmp_path / "model.gguf")
    found = metadata_in(tmp_path / "model.gguf")
    assert [found[f"{name}_token_id"] for name in ("eos", "eot", "eom")] == ends["eos_token_id"]
    assert load(tmp_path / "model.gguf").model.generation_config.eos_token_id == ends["eos_token_id"]


@pytest.mark.parametrize("split", ["llama-bpe", "sentencepiece"])
def test_a_tokenizer_longer_than_the_embedding_is_refused(tmp_path, split):
    folder = folder_with(tmp_path, split, vocab_size=700)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 700, "content": "<|new|>"})
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=r"has the token '<\|new\|>' of id 700, and the model has rows for 700"):
        convert(folder, tmp_path / "model.gguf")
    model = load(folder).model
    model.resize_token_embeddings(701)
    model.save_pretrained(folder)
    convert(folder, tmp_path / "model.gguf")
    assert metadata_in(tmp_path / "model.gguf")["tokens"][700] == "<|new|>"


def test_bytes_without_merges_are_refused(tmp_path):
    """llama.cpp asks for a byte-level tokenizer's list of merges, and the gguf package writes no empty list."""
    folder = folder_with(tmp_path, "qwen2")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json has no merges, and llama.cpp reads no byte-level"):
        convert(folder, tmp_path / "model.gguf")


def lowercase(content):
    given = content["normalizer"]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *([given] if given else [])]}


def compatible_forms(content):
    given = content["normalizer"]
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, *([given] if given else [])]}


def digits(content):
    content["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}


def ends_of_words(content):
    content["model"]["end_of_word_suffix"] = "</w>"


def blanks_go_along(content):
    content["added_tokens"][1]["rstrip"] = True


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("sentencepiece", lowercase, r"where llama.cpp would make .* of \"Hello World, it's"),
        ("sentencepiece", compatible_forms, "of '\ufb01 "),
        ("sentencepiece", digits, r"makes \['1', '2', '3', '4'\] where llama.cpp would make \['12'"),
        ("sentencepiece", blanks_go_along, "finds '<s>' with rstrip, for which a GGUF file has no word"),
        ("qwen2", lowercase, r"makes \['h'"),
        ("qwen2", compatible_forms, "of '\ufb01 "),
        ("llama-bpe", ends_of_words, "other ways to split and merge"),
        ("gpt-2", blanks_go_along, r"finds '<\|im_start\|>' with rstrip"),
    ],
)
def test_a_tokenizer_that_would_become_another_one_is_refused(tmp_path, split, change, message):
    """llama.cpp has names for vocabularies, merges and ways to split; it would leave out the rest without a word."""
    folder = folder_with(tmp_path, split)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()

"""The processor: the official arrays exactly, other ways to ask for the same, files, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from modelwright.errors import CheckpointError, RequestError
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.processing import ProcessedPrompt
from modelwright.processing.templates import Rendering

GOLDEN = Path(__file__).parents[2] / "golden" / "processor"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")
BATCH = CASES.pop("batch")["of"]


def pictures(case: str) -> list[Path]:
    return [GOLDEN / f"{name}.png" for name in CASES[case]["images"]]


@pytest.mark.parametrize("case", CASES)
def test_single_conversations_equal_the_official_code(processor, case):
    batch = processor(conversations=CASES[case]["conversation"], images=pictures(case), **CASES[case]["kwargs"])
    for name in ("input_ids", "labels", "images_seq_mask", "images_spatial_crop"):
        official = "target_ids" if name == "labels" else name
        np.testing.assert_array_equal(batch[name][0].numpy(), EXPECTED[f"{case}.{official}"], err_msg=name)
    np.testing.assert_allclose(batch["images"][0].numpy(), EXPECTED[f"{case}.images"], atol=1e-6, rtol=0)
    one = processor.process_one(CASES[case]["conversation"], pictures(case))
    assert list(one.num_image_tokens) == CASES[case]["num_image_tokens"]


def test_a_batch_equals_the_official_code(processor):
    conversations = [CASES[case]["conversation"] for case in BATCH]
    nested = processor(conversations=conversations, images=[pictures(case) for case in BATCH])
    for name in ("input_ids", "labels", "attention_mask", "images_seq_mask", "images_spatial_crop"):
        np.testing.assert_array_equal(nested[name].numpy(), EXPECTED[f"batch.{name}"], err_msg=name)
    np.testing.assert_allclose(nested["images"].numpy(), EXPECTED["batch.images"], atol=1e-6, rtol=0)
    assert nested["images_seq_mask"].dtype == nested["attention_mask"].dtype == torch.bool
    flat = processor(conversations=conversations, images=[path for case in BATCH for path in pictures(case)])
    assert all(torch.equal(flat[name], nested[name]) for name in nested)


def test_special_tokens_have_the_official_ids_whoever_loads_the_tokenizer(processor):
    ids = json.loads((GOLDEN / "special_token_ids.json").read_text("utf-8"))
    by_hand = DeepseekVLV2Processor(AutoTokenizer.from_pretrained(GOLDEN / "tokenizer"), patch_size=14)
    for tokenizer in (processor.tokenizer, by_hand.tokenizer):
        assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    size = len(processor.tokenizer)
    assert DeepseekVLV2Processor(processor.tokenizer).image_token_id == 421
    assert len(processor.tokenizer) == size


def openai(case: str) -> list[dict]:
    """The same conversation as content parts that hold their pictures."""
    sources, messages = iter(pictures(case)), []
    for message in CASES[case]["conversation"]:
        head, *tail = message["content"].split("<image>")
        parts = [{"type": "text", "text": head}] if head else []
        for words in tail:
            parts += [{"type": "image", "path": next(sources)}, {"type": "text", "text": words}]
        messages.append({"role": {"<|User|>": "user", "<|Assistant|>": "assistant"}[message["role"]], "content": parts})
    return messages


@pytest.mark.parametrize("case", ["one_image", "two_images", "multi_turn"])
def test_every_way_to_ask_gives_the_same_tokens(processor, case):
    conversation, images = CASES[case]["conversation"], pictures(case)
    official = processor(conversations=conversation, images=images)
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert text == processor.tokenizer.apply_chat_template(conversation, tokenize=False)
    assert text == processor.process_one(conversation, images).text
    for other in (
        processor(conversations=openai(case)),
        processor(conversations=[conversation], images=[images]),
        processor(text=text, images=images),
        processor(prompt=[text], images=[images]),
        processor.apply_chat_template(openai(case), tokenize=True),
    ):
        assert all(torch.equal(other[name], official[name]) for name in official if name != "labels")


words = st.text("aé 你.?\n'", max_size=12)
turn = st.one_of(words, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": words}), max_size=3))


@pytest.fixture(scope="session")
def by_format(processor) -> dict[str, DeepseekVLV2Processor]:
    return {"deepseek": processor, "plain": DeepseekVLV2Processor.from_pretrained(GOLDEN, sft_format="plain")}


@settings(max_examples=60, deadline=None)
@given(
    system=st.sampled_from(["", "Be brief."]),
    contents=st.lists(turn, min_size=1, max_size=4),
    name=st.sampled_from(["deepseek", "plain"]),
)
def test_the_chat_template_prints_what_the_processor_tokenises(by_format, system, contents, name):
    processor = by_format[name]
    conversation = [{"role": "system", "content": system}] if system else []
    conversation += [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    text = processor.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    last = contents[-1] if isinstance(contents[-1], str) else "".join(part["text"] for part in contents[-1])
    unanswered = len(contents) % 2 == 0 and not last.strip()
    assert text == processor.process_one(conversation, inference_mode=unanswered).text


def test_alignment_prints_only_pictures():
    aligned = DeepseekVLV2Processor.from_pretrained(GOLDEN, sft_format="alignment")
    conversation = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a cat"}]
    text = aligned.tokenizer.apply_chat_template(conversation, tokenize=False)
    one = aligned.process_one(conversation, [Image.new("RGB", (9, 9))], inference_mode=False)
    assert text == one.text == "<｜begin▁of▁sentence｜><image>\na cat<｜end▁of▁sentence｜>"


def test_a_literal_image_token_is_text(processor):
    one = processor.process_one([{"role": "user", "content": "What does <image> mean?"}])
    assert processor.image_token_id not in one.input_ids and not one.images_seq_mask.any()
    assert "What does <image> mean?" in processor.decode(one.input_ids)
    picture = {"type": "image", "image": Image.new("RGB", (56, 56))}
    one = processor.process_one([{"role": "user", "content": [picture, {"type": "text", "text": "Is it <image>?"}]}])
    assert (one.input_ids == processor.image_token_id).sum() == 13 == one.images_seq_mask.sum()


def test_the_system_prompt_reaches_the_tokens(processor):
    asked = [{"role": "user", "content": "Hello!"}]
    given_beside = processor(conversations=asked, system_prompt="You are a helpful assistant.")
    np.testing.assert_array_equal(given_beside["input_ids"][0], EXPECTED["system.input_ids"])


def test_labels(processor):
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    learning = processor.process_one(conversation, inference_mode=False)
    assert processor.decode(learning.labels[learning.labels >= 0]) == "<｜begin▁of▁sentence｜>Yo<｜end▁of▁sentence｜>"
    unmasked = DeepseekVLV2Processor(processor.tokenizer, candidate_resolutions=[[56, 56]], mask_prompt=False)
    shown = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Yo"}]
    one = unmasked.process_one(shown, [Image.new("RGB", (9, 9))], inference_mode=False)
    np.testing.assert_array_equal(one.labels, np.where(one.images_seq_mask, -100, one.input_ids))


def test_one_begin_of_sentence(processor):
    for text in ("Hi", "<｜begin▁of▁sentence｜>Hi"):
        assert processor(text=text)["input_ids"].tolist() == [
            [0, *processor.tokenizer.encode("Hi", add_special_tokens=False)]
        ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=4), st.sampled_from(["2D", "1D"]))
def test_tokens_tiles_and_crops_agree(processor, sizes, tile_tag):
    processor = DeepseekVLV2Processor(
        processor.tokenizer, candidate_resolutions=processor.candidate_resolutions, tile_tag=tile_tag
    )
    images = [Image.new("RGB", size, "blue") for size in sizes]
    one = processor.process_one([{"role": "user", "content": "<image>" * len(sizes) + "?"}], images)
    grids = one.images_spatial_crop.tolist() if sizes else []
    expected = [(1 + tw * th) * 5 if tile_tag == "1D" else 6 + 1 + 2 * th * (2 * tw + 1) for tw, th in grids]
    assert list(one.num_image_tokens) == expected
    assert one.images_seq_mask.sum() == sum(expected)
    assert len(one.images) == max(1, sum(1 + tw * th for tw, th in grids))
    assert len(sizes) <= 2 or grids == [[1, 1]] * len(sizes)


def look(images, details):
    parts = [
        {"type": "image_url", "image_url": {"url": image, "detail": detail}}
        if number % 2
        else {"type": "image", "image": image, "detail": detail}
        for number, (image, detail) in enumerate(zip(images, details, strict=True))
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize(
    ("details", "tiled"),
    [
        (("auto", None), (True, True)),
        (("auto", None, "auto"), (False, False, False)),
        (("low", "auto"), (False, True)),
        (("high", "low", "auto"), (True, False, False)),
        (("low",), (False,)),
        (("high", "high", "high"), (True, True, True)),
    ],
)
def test_detail_says_which_pictures_are_cut_into_tiles(processor, details, tiled, template):
    """Each picture is as it is alone in a conversation of few, or of many, pictures."""
    images = [Image.linear_gradient("L").resize(size).convert("RGB") for size in ((70, 20), (30, 90), (60, 61))]
    images = images[: len(details)]
    few = [processor.process_one(look([image], [None])) for image in images]
    many = [processor.process_one(look([image] * 3, [None] * 3)) for image in images]
    expected = [one if cut else three for one, three, cut in zip(few, many, tiled, strict=True)]
    how = Rendering(add_generation_prompt=True) if template else Rendering()
    got = processor.process_messages(look(images, details), how)
    assert any(one.images_spatial_crop.tolist() != [[1, 1]] for one in few)
    assert got.images_spatial_crop.tolist() == [each.images_spatial_crop[0].tolist() for each in expected]
    assert got.num_image_tokens == tuple(each.num_image_tokens[0] for each in expected)
    tiles = [each.images[: 1 + int(each.images_spatial_crop[0].prod())] for each in expected]
    np.testing.assert_array_equal(got.images, np.concatenate(tiles))


def test_an_unknown_detail_is_refused(processor):
    with pytest.raises(
        RequestError, match=r"messages\[0\].content\[0\]: detail must be one of auto, low, high, got 'ultra'"
    ):
        processor.process_one(look([Image.new("RGB", (9, 9))], ["ultra"]))


def test_unbatched_and_numpy_outputs(processor):
    conversation = [{"role": "user", "content": "Hi"}]
    one = processor(conversations=conversation, force_batchify=False)
    assert isinstance(one, ProcessedPrompt) and len(one) == len(one.input_ids)
    batch = processor.batch(
        [one, processor.process_one([{"role": "user", "content": "Hello there"}])], return_tensors="np"
    )
    assert isinstance(batch["input_ids"], np.ndarray)
    assert batch["attention_mask"].sum(1).tolist()[0] == len(one)
    np.testing.assert_array_equal(batch["input_ids"][0, -len(one) :], one.input_ids)


def test_the_hub_gets_the_files_that_are_saved(processor, hub, tmp_path):
    processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="a/b", private=True)
    repositories, commits = hub
    assert [name for name, _ in repositories] == ["a/b"] and repositories[0][1]["private"] is True
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: content for name, content in commits[0].items() if name != "README.md"} == saved


def test_saving_and_loading(processor, tmp_path):
    processor = DeepseekVLV2Processor(
        processor.tokenizer, candidate_resolutions=[[28, 28], [28, 56]], max_cropped_images=1, tile_tag="1D"
    )
    processor.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= names
    saved = json.loads((tmp_path / "processor_config.json").read_text("utf-8"))
    assert saved["processor_class"] == "DeepseekVLV2Processor" and saved["candidate_resolutions"] == [
        [28, 28],
        [28, 56],
    ]
    assert (
        json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )
    loaded = DeepseekVLV2Processor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.tokenizer.chat_template == processor.tokenizer.chat_template
    conversation = [{"role": "user", "content": "<image><|ref|>x<|/ref|> 你好"}]
    first, second = (p.process_one(conversation, [Image.new("RGB", (20, 90))]) for p in (processor, loaded))
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    assert DeepseekVLV2Processor.from_pretrained(tmp_path, sft_format="plain").sft_format == "plain"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no processor that can be read"):
        DeepseekVLV2Processor.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no processor that can be read"):
        DeepseekVLV2Processor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either conversations or a prompt"),
        ({"text": "a", "system_prompt": "b"}, "formatted already"),
        ({"conversations": []}, "at least one conversation"),
        ({"text": "<image>", "images": []}, "the conversation: 1 <image> placeholder but 0 pictures"),
        ({"text": "a", "images": ["x.png"]}, "the conversation: 0 <image> placeholders but 1 picture;"),
        ({"text": ["<image>", "b"], "images": [["x"], ["y"]]}, "conversation 1: 0 <image> placeholders but 1 picture"),
        ({"text": ["<image>", "<image>"], "images": ["x"]}, "2 conversations: 2 <image> placeholders but 1 picture"),
        ({"text": ["a", "b"], "images": [["x"]]}, "1 lists of pictures for 2 conversations"),
        ({"text": "<image>", "images": "x.png"}, "no such picture: x.png"),
        ({"text": "<image>", "images": 7}, "a picture must be a PIL image, a path, .* not int"),
        ({"text": "<image>", "images": ["none.png"]}, "no such picture: none.png"),
        ({"text": "a", "colour": 1}, "does not know the arguments colour"),
    ],
)
def test_requests_that_cannot_be_served(processor, arguments, message):
    with pytest.raises(RequestError, match=message):
        processor(**arguments)

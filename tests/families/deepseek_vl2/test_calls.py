"""The processor as transformers' and TRL's code calls it: arguments, pipelines, chat templates.

The oracle is transformers' tokenizer, called with the same arguments where there is no picture.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from modelwright import register
from modelwright.errors import RequestError
from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor
from modelwright.processing.marks import put_marks
from tests.checkpoints.tiny import GOLDEN, write_vl2

PICTURE = Image.open(GOLDEN / "square.png")
TEXTS = ["Hello there, you", "a", "What is it?"]
PARTS = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]
ASKED = [{"role": "user", "content": PARTS}]
ANSWERED = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "A red"}]}]


@pytest.fixture(scope="module")
def marking():
    """A processor whose tokenizer begins texts, so that its own call is the oracle."""
    processor = DeepseekVLV2Processor.from_pretrained(GOLDEN)
    put_marks(processor.tokenizer, True, False)
    return processor


@pytest.mark.parametrize(
    "how",
    [
        {"padding": True},
        {"padding": "longest", "padding_side": "right"},
        {"padding": True, "padding_side": "left", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 12},
        {"padding": "max_length", "max_length": 12, "padding_side": "right", "pad_to_multiple_of": 5},
        {"padding": True, "truncation": True, "max_length": 3},
        {"padding": True, "truncation": "longest_first", "max_length": 4, "padding_side": "right"},
        {"padding": True, "truncation": False, "max_length": 3},
        {"padding": True, "add_special_tokens": False},
        {"padding": "max_length", "truncation": True, "max_length": 4, "add_special_tokens": False},
        {"padding": True, "return_attention_mask": False},
        {"padding": True, "return_token_type_ids": False, "verbose": False},
    ],
)
@pytest.mark.parametrize("kind", ["pt", "np", None])
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_rows_are_marked_cut_and_padded_as_transformers_does(marking, how, kind):
    wanted = marking.tokenizer(TEXTS, return_tensors=kind, **how)
    for batch in (
        marking(text=TEXTS, return_tensors=kind, **how),
        marking(text=TEXTS, text_kwargs=how | {"return_tensors": kind}),
    ):
        assert ("attention_mask" in batch) == ("attention_mask" in wanted)
        for name in set(wanted) & set(batch):
            assert type(batch[name]) is type(wanted[name])
            assert np.array_equal(np.asarray(batch[name], int), np.asarray(wanted[name])), name


def test_the_side_that_is_cut_and_what_a_length_alone_means(marking):
    marking.tokenizer.truncation_side = "left"
    try:
        for how in ({"truncation": True, "max_length": 3}, {"max_length": 3}):
            wanted = marking.tokenizer("Hello there, you", **how)["input_ids"]
            assert marking(text="Hello there, you", return_tensors=None, **how)["input_ids"] == [wanted]
    finally:
        marking.tokenizer.truncation_side = "right"


def test_rows_that_are_not_padded_are_lists(processor):
    rows = processor(text=TEXTS, padding=False, return_tensors=None)["input_ids"]
    assert rows == [[0, *processor.tokenizer.encode(text, add_special_tokens=False)] for text in TEXTS]
    with pytest.raises(RequestError, match=r"padding is off, and rows of \[7, 2, 7\] tokens make no tensor"):
        processor(text=TEXTS, padding=False)
    assert processor(text="a", padding=False)["input_ids"].shape == (1, 2)


def test_a_picture_is_never_cut(processor):
    whole = processor(text="<image>What is it?", images=PICTURE)
    cut = processor(text="<image>What is it?", images=PICTURE, truncation=True, max_length=29)
    assert torch.equal(cut.input_ids, whole.input_ids[:, :29])
    with pytest.raises(RequestError, match=r"max_length \(20\) would cut a picture: the prompt has 34 tokens"):
        processor(text="<image>What is it?", images=PICTURE, truncation=True, max_length=20)


def test_one_picture_needs_no_list_and_numbers_are_pictures(processor):
    wanted = processor(text="<image>?", images=[PICTURE])
    levels = np.asarray(PICTURE.convert("RGB"))
    first = levels.transpose(2, 0, 1)
    for given in (PICTURE, str(GOLDEN / "square.png"), levels, levels / 255, torch.tensor(first.copy()), [[first]]):
        batch = processor(text="<image>?", images=given)
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    two = processor(text=["<image>?", "<image>?"], images=np.stack([levels, levels]))
    assert torch.equal(two.images[1], wanted.images[0])
    message = [{"role": "user", "content": [{"type": "image", "image": torch.tensor(first / 255)}]}]
    assert torch.equal(processor(conversations=message).images, wanted.images)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"paddin": True}, "does not know the arguments paddin; did you mean padding?"),
        ({"videos": ["a.mp4"]}, "does not serve videos: it reads no videos"),
        ({"return_offsets_mapping": True}, "does not serve return_offsets_mapping"),
        ({"text_kwargs": {"stride": 3}}, "does not serve stride: nothing overflows"),
        ({"images_kwargs": {"do_resize": False}}, "does not serve images_kwargs: how pictures are cut is said by"),
        (
            {"padding": "longst"},
            "padding must be one of None, True, False, longest, max_length, do_not_pad; got 'longst'",
        ),
        ({"padding_side": "middle"}, "padding_side must be one of None, left, right; got 'middle'"),
        ({"truncation": "only_second"}, "truncation must be one of"),
        ({"return_tensors": "tf"}, "return_tensors must be one of None, pt, np; got 'tf'"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ({"pad_to_multiple_of": True}, "pad_to_multiple_of must be a whole number of at least 1, got True"),
    ],
)
def test_what_is_not_served_is_refused_by_name(processor, arguments, said):
    for call in (
        lambda: processor(text="a", **arguments),
        lambda: processor.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, **arguments),
        lambda: processor.apply_chat_template([{"role": "user", "content": "a"}], processor_kwargs=arguments),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert said in str(caught.value)


WORDS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
SAID = [*WORDS, {"role": "assistant", "content": "A tag."}]
WITHOUT_MARK = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("said", [[WORDS], [SAID], [WORDS, SAID]])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"add_generation_prompt": True},
        {"truncation": True, "max_length": 9},
        {"padding": "max_length", "max_length": 64},
        {"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ mood }}", "mood": " calm"},
        {"chat_template": WITHOUT_MARK, "add_special_tokens": False},
    ],
)
def test_what_a_template_prints_is_tokenized_as_transformers_does(processor, said, how):
    theirs = {"padding": True} | {name: value for name, value in how.items() if name != "add_special_tokens"}
    wanted = processor.tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True, **theirs)
    batch = processor.apply_chat_template(said, tokenize=True, return_tensors="pt", return_dict=True, **how)
    assert torch.equal(batch.input_ids, wanted["input_ids"])
    assert torch.equal(batch.attention_mask.long(), wanted["attention_mask"])
    lists = processor.apply_chat_template(said, tokenize=True, return_tensors=None, return_dict=False, **how)
    assert lists == wanted["input_ids"].tolist()
    printing = {
        name: value for name, value in how.items() if name in ("add_generation_prompt", "chat_template", "mood")
    }
    texts = processor.tokenizer.apply_chat_template(said, tokenize=False, **printing)
    assert processor.apply_chat_template(said, **printing) == texts
    assert processor.apply_chat_template(said[0], **printing) == texts[0]


def test_a_template_that_prints_no_mark_gets_it_and_image_in_words_is_words(processor):
    said = [{"role": "user", "content": "What is <image>?"}]
    one = processor.apply_chat_template(said, tokenize=True, chat_template=WITHOUT_MARK)
    assert processor.decode(one.input_ids[0]) == "<｜begin▁of▁sentence｜>What is <image>?<｜end▁of▁sentence｜>"
    assert not one.images_seq_mask.any() and (one.input_ids != processor.image_token_id).all()
    assert "What is <image>?" in processor.apply_chat_template(said)


def test_an_answer_keeps_its_end_is_left_open_or_learnt(processor):
    closed = processor.apply_chat_template(ANSWERED, tokenize=True)
    opened = processor.apply_chat_template(ANSWERED, tokenize=True, continue_final_message=True)
    assert closed.input_ids[0, -1] == processor.eos_id and torch.equal(closed.input_ids[:, :-1], opened.input_ids)
    assert torch.equal(opened.input_ids, processor(conversations=ANSWERED).input_ids)
    assert closed.sft_format[0].endswith("<|Assistant|>:A red<｜end▁of▁sentence｜>")
    asked = processor.apply_chat_template(ASKED, tokenize=True, add_generation_prompt=True)
    assert torch.equal(asked.input_ids, processor(conversations=ASKED).input_ids)
    assert torch.equal(asked.images, processor(conversations=ASKED).images)
    beside = [{"role": "user", "content": [{"type": "image"}, PARTS[1]]}]
    given = processor.apply_chat_template(beside, tokenize=True, add_generation_prompt=True, images=[PICTURE])
    assert all(torch.equal(given[name], asked[name]) for name in asked)
    with pytest.raises(RequestError, match="does not serve return_assistant_tokens_mask"):
        processor.apply_chat_template(ANSWERED, tokenize=True, return_assistant_tokens_mask=True)
    with pytest.raises(RequestError, match="continue_final_message and add_generation_prompt exclude each other"):
        processor.apply_chat_template(ANSWERED, continue_final_message=True, add_generation_prompt=True)


def test_a_collation_as_trl_makes_it(processor):
    """Texts of a template, pictures beside them, padding on the right, and marks that are written already."""
    rows = [ANSWERED, [{"role": "user", "content": [PARTS[1]]}, {"role": "assistant", "content": [PARTS[1]]}]]
    texts = processor.apply_chat_template(rows)
    batch = processor(
        images=[[PICTURE], []],
        text=texts,
        padding=True,
        padding_side="right",
        pad_to_multiple_of=8,
        truncation=True,
        max_length=64,
        return_tensors="pt",
        add_special_tokens=False,
    )
    plain = processor(conversations=rows, inference_mode=False)
    assert batch.input_ids.shape[1] % 8 == 0 and torch.equal(batch.images, plain.images)
    for row, length in enumerate(plain.seq_lens):
        assert batch.attention_mask[row].sum() == length
        assert torch.equal(batch.input_ids[row, :length], plain.input_ids[row, -length:])
        assert torch.equal(batch.images_seq_mask[row, :length], plain.images_seq_mask[row, -length:])


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    register()
    return pipeline("image-text-to-text", model=str(write_vl2(tmp_path_factory.mktemp("vl2"))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("generate_may_warn")
def test_the_pipeline_answers_as_the_model_does(pipe):
    assert isinstance(AutoProcessor.from_pretrained(pipe.model.name_or_path), DeepseekVLV2Processor)
    how = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}}

    def answer(**given) -> str:
        inputs = pipe.processor(**given)
        new = pipe.model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs.input_ids.shape[1] :]
        return pipe.processor.tokenizer.decode(new[0], skip_special_tokens=True)

    text = "<image>\nWhat is it?"
    assert pipe(images=PICTURE, text=text, return_full_text=False, **how)[0]["generated_text"] == answer(
        images=[PICTURE], text=text
    )
    assert pipe(text=ASKED, return_full_text=False, **how)[0]["generated_text"] == answer(conversations=ASKED)
    continued = pipe(text=ANSWERED, return_full_text=False, **how)[0]["generated_text"]
    assert continued == answer(conversations=ANSWERED)
    assert pipe(text="Hello", return_full_text=False, **how)[0]["generated_text"] == answer(text="Hello")

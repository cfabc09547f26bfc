"""What official DeepSeek-VL2 code does with a processor and a model: its snippets as they stand, and its methods.

The lines of the snippets are those of the official README and ``inference.py``, with other paths and fewer tokens; the
oracles are the official outputs in ``tests/golden/processor`` and what our own roads give.
"""

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from modelwright.errors import ConfigError, RequestError
from tests.checkpoints.tiny import GOLDEN, write_vl2

CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")
BATCH = CASES.pop("batch")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_vl2(tmp_path_factory.mktemp("vl2"))


def load_pil_images(conversations):
    return [Image.open(path).convert("RGB") for message in conversations for path in message.get("images", [])]


def conversation_of(case: str) -> list[dict]:
    """A golden conversation with its pictures where the official form has them."""
    supply = iter(CASES[case]["images"])
    return [
        message | {"images": [str(GOLDEN / f"{next(supply)}.png") for _ in range(message["content"].count("<image>"))]}
        for message in CASES[case]["conversation"]
    ]


def test_the_snippets_of_the_readme_and_of_inference(model_path):
    vl_chat_processor: DeepseekVLV2Processor = DeepseekVLV2Processor.from_pretrained(model_path)
    tokenizer = vl_chat_processor.tokenizer

    vl_gpt: Any = AutoModelForCausalLM.from_pretrained(model_path, trust_remote_code=True)
    vl_gpt = vl_gpt.eval()
    conversation = conversation_of("two_images")

    # load images and prepare for inputs
    pil_images = load_pil_images(conversation)
    prepare_inputs = vl_chat_processor(
        conversations=conversation, images=pil_images, force_batchify=True, system_prompt=""
    ).to(vl_gpt.device)

    # run image encoder to get the image embeddings
    inputs_embeds = vl_gpt.prepare_inputs_embeds(**prepare_inputs)

    # run the model to get the response
    outputs = vl_gpt.language.generate(
        inputs_embeds=inputs_embeds,
        attention_mask=prepare_inputs.attention_mask,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=8,
        do_sample=False,
        use_cache=True,
    )
    plain = vl_gpt.generate(**prepare_inputs, max_new_tokens=8, do_sample=False)[0, prepare_inputs.input_ids.shape[1] :]
    assert outputs[0].tolist() == plain.tolist()
    assert f"{prepare_inputs['sft_format'][0]}" == CASES["two_images"]["sft_format"]

    with torch.no_grad():
        # run image encoder to get the image embeddings
        inputs_embeds = vl_gpt.prepare_inputs_embeds(**prepare_inputs)

        # incremental_prefilling when using 40G GPU for vl2-small
        inputs_embeds, past_key_values = vl_gpt.incremental_prefilling(
            input_ids=prepare_inputs.input_ids,
            images=prepare_inputs.images,
            images_seq_mask=prepare_inputs.images_seq_mask,
            images_spatial_crop=prepare_inputs.images_spatial_crop,
            attention_mask=prepare_inputs.attention_mask,
            chunk_size=16,  # prefilling size
        )

        # run the model to get the response
        outputs = vl_gpt.generate(
            inputs_embeds=inputs_embeds,
            input_ids=prepare_inputs.input_ids,
            images=prepare_inputs.images,
            images_seq_mask=prepare_inputs.images_seq_mask,
            images_spatial_crop=prepare_inputs.images_spatial_crop,
            attention_mask=prepare_inputs.attention_mask,
            past_key_values=past_key_values,
            pad_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            max_new_tokens=8,
            do_sample=False,
            use_cache=True,
        )
    assert outputs[0][len(prepare_inputs.input_ids[0]) :].tolist() == plain.tolist()

    dtype = torch.bfloat16
    prepare_inputs = vl_chat_processor.__call__(
        conversations=conversation, images=pil_images, force_batchify=True, system_prompt=""
    ).to(vl_gpt.device, dtype=dtype)
    assert (prepare_inputs.images.dtype, prepare_inputs.input_ids.dtype) == (dtype, torch.int64)


def test_every_auto_class_loads_the_model(model_path):
    assert type(AutoModel.from_pretrained(model_path)) is DeepseekVLV2ForCausalLM


@pytest.mark.parametrize("case", CASES)
def test_outputs_have_the_official_printout_lengths_and_labels(processor, case):
    conversation, kwargs = conversation_of(case), CASES[case]["kwargs"]
    batch = processor(conversations=conversation, images=load_pil_images(conversation), **kwargs)
    assert batch.sft_format == batch["sft_format"] == [CASES[case]["sft_format"]]
    assert batch.seq_lens == [batch.input_ids.shape[1]]
    assert batch.target_ids is batch["labels"] and np.array_equal(batch.target_ids[0], EXPECTED[f"{case}.target_ids"])
    assert not {"sft_format", "seq_lens", "target_ids"} & {*batch, *batch.keys()}
    one = processor.process_one(conversations=conversation, images=load_pil_images(conversation), **kwargs)
    assert (one.sft_format, one["sft_format"]) == (CASES[case]["sft_format"],) * 2
    assert np.array_equal(one.target_ids, one["labels"])


def test_batchify_is_the_official_batch(processor):
    conversations = [conversation_of(case) for case in BATCH["of"]]
    samples = [processor.process_one(conversations=c, images=load_pil_images(c)) for c in conversations]
    left, right = processor.batchify(samples), processor.batchify(samples, padding="right")
    assert left.seq_lens == BATCH["seq_lens"] == right.seq_lens
    assert left.sft_format == [CASES[case]["sft_format"] for case in BATCH["of"]]
    for name in ("input_ids", "labels", "attention_mask", "images_seq_mask", "images_spatial_crop"):
        np.testing.assert_array_equal(left[name].numpy(), EXPECTED[f"batch.{name}"], err_msg=name)
    for row, length in enumerate(right.seq_lens):
        assert right.attention_mask[row].tolist() == [True] * length + [False] * (84 - length)
        for name in ("input_ids", "labels", "images_seq_mask"):
            assert torch.equal(right[name][row, :length], left[name][row, 84 - length :])
    again = pickle.loads(pickle.dumps(left))
    assert again.seq_lens == left.seq_lens == copy.deepcopy(left).seq_lens
    with pytest.raises(AttributeError, match="a batch has no 'colour'"):
        _ = left.colour


@pytest.mark.parametrize("case", ["two_images", "training_labels", "system", "three_images_uncropped"])
def test_messages_and_text_as_lists(processor, case):
    conversation = conversation_of(case)
    pictures = load_pil_images(conversation)
    ids, labels, tiles, mask, crops, counts = processor.format_messages_v2(conversation, pictures)
    ends = [processor.eos_id] * (case != "training_labels")  # which the golden outputs leave out in inference mode
    assert ids == [*EXPECTED[f"{case}.input_ids"].tolist(), *ends]
    assert labels == [*EXPECTED[f"{case}.target_ids"].tolist(), *ends]
    assert mask == [*EXPECTED[f"{case}.images_seq_mask"].tolist(), *(False for _ in ends)]
    assert counts == CASES[case]["num_image_tokens"]
    if pictures:
        np.testing.assert_allclose(torch.stack(tiles), EXPECTED[f"{case}.images"], atol=1e-6)
        assert crops == EXPECTED[f"{case}.images_spatial_crop"].tolist()
    else:
        assert (tiles, crops) == ([], [])


def test_text_with_pictures_in_it(processor):
    picture = Image.new("RGB", (80, 120), "red")
    for bos, eos in ((True, True), (False, True), (True, False), (False, False)):
        ids, tiles, mask, crops, counts = processor.tokenize_with_images("a <image>b", [picture], bos=bos, eos=eos)
        words = processor.encode("a ", bos=bos), processor.encode("b", bos=False, eos=eos)
        assert ids == words[0] + [processor.image_token_id] * counts[0] + words[1]
        assert sum(mask) == counts[0] and len(tiles) == 1 + crops[0][0] * crops[0][1]
    *_, crops, counts = processor.tokenize_with_images("<image>", [picture], cropping=False)
    assert (crops, counts) == ([[1, 1]], [13])
    with pytest.raises(RequestError, match="the conversation: 1 <image> placeholder but 0 pictures"):
        processor.tokenize_with_images("<image>", [])
    tile = processor.image_transform(Image.new("RGB", (56, 56), "white"))
    assert (tile.shape, tile.dtype, float(tile.min())) == ((3, 56, 56), torch.float32, 1.0)
    assert processor.image_transform.mean == (0.5, 0.5, 0.5)


def test_small_official_names(processor):
    assert (processor.bos_id, processor.eos_id, processor.pad_id) == (0, 1, 2)
    assert processor.encode("Hi") == [0, 42, 75] and processor.encode("Hi", bos=False, eos=True) == [42, 75, 1]
    assert processor.decode(processor.encode("Hi", bos=False)) == "Hi"
    asked = "<|User|>: what?\n\n<|Assistant|>:"
    assert processor.format_prompts(" what? ") == asked
    assert processor.format_prompts("what?", "plain") == "what?"
    assert processor.format_messages([{"role": "<|User|>", "content": "what?"}], system_prompt="S") == (
        "S\n\n<|User|>: what?"
    )
    assert processor.format_messages(conversation_of("multi_turn")) == CASES["multi_turn"]["sft_format"]


def test_a_prompt_that_is_to_be_formatted(processor):
    plain = processor(conversations=[{"role": "user", "content": "what?"}])
    asked = processor(prompt="what?", apply_sft_format=True)
    assert asked.sft_format == ["<|User|>: what?\n\n<|Assistant|>:"]
    assert torch.equal(asked.input_ids, plain.input_ids)
    told = processor(prompt=["what?"], apply_sft_format=True, system_prompt="Be brief.")
    assert told.sft_format == ["Be brief.\n\n<|User|>: what?\n\n<|Assistant|>:"]


def test_a_conversation_that_grows_as_the_web_demo_makes_it(processor):
    conversation = processor.new_chat_template()
    assert conversation.roles == ("<|User|>", "<|Assistant|>") and conversation.system_message == ""
    conversation.append_message(conversation.roles[0], ("<image>\nWhat is in the picture?", ["a.png"]))
    conversation.append_message(conversation.roles[1], "")
    shown = conversation.copy()
    assert conversation.get_prompt() == "<|User|>: <image>\nWhat is in the picture?\n\n<|Assistant|>:"
    conversation.update_last_message("A red circle.")
    assert conversation.get_prompt().endswith("<|Assistant|>: A red circle.<｜end▁of▁sentence｜>")
    assert shown.messages[1][1] == "" and processor.new_chat_template().messages == []
    assert len(conversation.messages[conversation.offset :]) == 2 and "<｜end▁of▁sentence｜>" in conversation.stop_str
    alignment = DeepseekVLV2Processor.from_pretrained(GOLDEN, sft_format="alignment").new_chat_template()
    alignment.append_message("", "a cat")
    assert alignment.get_prompt() == "<image>\n"
    with pytest.raises(ConfigError, match="sft_format 'llama' is unknown"):
        processor.format_prompts("x", "llama")


def test_a_caption_is_learnt_but_for_its_picture(processor, model_path):
    """The official ``process_one`` of a prompt: a beginning, the text, an end, every token a label but pictures."""
    picture = Image.open(GOLDEN / "square.png")
    words = processor.encode("a red circle", bos=False)
    for given in ({"prompt": "<image>a red circle"}, {"text": ["<image>a red circle"]}):
        row = processor(images=[picture], inference_mode=False, **given)
        assert row.input_ids[0].tolist() == [0] + [processor.image_token_id] * 27 + [*words, 1]
        assert row.labels[0].tolist() == [0] + [-100] * 27 + [*words, 1]
    model = DeepseekVLV2ForCausalLM.from_pretrained(model_path)
    with torch.no_grad():
        loss, logits = (output := model(**row)).loss, output.logits
    foreseen = torch.nn.functional.cross_entropy(logits[0, 27:-1], torch.tensor([*words, 1]))
    torch.testing.assert_close(loss, foreseen)
    read = processor(prompt="<image>a red circle", images=[picture])
    assert read.input_ids[0].tolist() == row.input_ids[0, :-1].tolist()
    ended = processor(prompt="a red circle<｜end▁of▁sentence｜>", inference_mode=False)
    assert ended.input_ids[0].tolist() == [0, *words, 1] == ended.labels[0].tolist()
    bare = processor(prompt="a red circle", inference_mode=False, add_special_tokens=False)
    assert bare.input_ids[0].tolist() == words

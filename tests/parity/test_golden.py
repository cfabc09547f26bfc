"""Every reference tensor of the official DeepSeek-VL2 code: logits, caches, losses, gradients and greedy tokens."""

import pytest
import torch

from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from tests.fakes import golden, write_checkpoint

TEXT = [
    "v2_dense",
    "v2_lite_group",
    "v2_mha_gqa",
    "v2_mla_yarn",
    "v2_noaux_sigmoid",
    "v2_rope_dynamic_long",
    "v2_rope_linear",
]
TRAINED = ["v2_train_batch_aux", "v2_train_seq_aux"]
PICTURES = ["vl2_batch", "vl2_odd_grid", "vl2_one_image", "vl2_tail_tiny"]
WITHOUT_EOS = {"do_sample": False, "pad_token_id": 0, "eos_token_id": 1, "min_new_tokens": 5}
"""The reference decoding suppressed the end of sequence."""


def load(cls, name, tmp_path, model_type="deepseek_v2"):
    config, weights, inputs, outputs = golden(name)
    folder = write_checkpoint(tmp_path, config | {"model_type": model_type}, weights)
    return cls.from_pretrained(folder), inputs, outputs


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TEXT)
def test_logits_and_cache_of_the_decoder(name, tmp_path):
    model, inputs, outputs = load(DeepseekV2ForCausalLM, name, tmp_path)
    with torch.no_grad():
        result = model(**inputs)
    real = inputs["attention_mask"].bool()
    close(result.logits[real], outputs["logits"][real])
    first = result.past_key_values.layers[0]
    for found, wanted in ((first.keys, outputs["cache0"]), (first.values, outputs["cache1"])):
        kept = real[:, None].expand(found.shape[:3])
        close(found[kept], wanted[kept])


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_tokens_of_the_decoder(name, attention, tmp_path):
    model, inputs, outputs = load(DeepseekV2ForCausalLM, name, tmp_path)
    model.set_attn_implementation(attention)
    new = outputs["greedy"].shape[1]
    found = model.generate(**inputs, max_new_tokens=new, **WITHOUT_EOS | {"min_new_tokens": new})
    assert torch.equal(found[:, inputs["input_ids"].shape[1] :], outputs["greedy"])


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_every_gradient_of_a_training_pass(name, tmp_path):
    model, inputs, outputs = load(DeepseekV2ForCausalLM, name, tmp_path)
    result = model.train()(**inputs)
    close(result.logits, outputs["logits"])
    close(result.loss - result.aux_loss, outputs["loss"])
    result.loss.backward()
    places = model.places()
    gradients = {key.removeprefix("grad."): value for key, value in outputs.items() if key.startswith("grad.")}
    assert gradients
    for official, wanted in gradients.items():
        place = places[official]
        close(model.get_parameter(place.parameter).grad[place.index], wanted)


def test_class_scores(tmp_path):
    model, inputs, outputs = load(DeepseekV2ForSequenceClassification, "v2_classify", tmp_path)
    with torch.no_grad():
        close(model(**inputs).logits, outputs["logits"])


@pytest.mark.parametrize("name", PICTURES)
def test_embeddings_and_logits_with_pictures(name, tmp_path):
    model, inputs, outputs = load(DeepseekVLV2ForCausalLM, name, tmp_path, "deepseek_vl_v2")
    inputs.pop("position_ids")  # ours counts them itself
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        close(model.prepare_inputs_embeds(**inputs), outputs["inputs_embeds"])
        close(model(**inputs).logits[real], outputs["logits"][real])


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", ["vl2_odd_grid", "vl2_one_image", "vl2_tail_tiny"])
def test_greedy_tokens_with_pictures_prefilled_whole_or_in_chunks(name, offload, tmp_path):
    model, inputs, outputs = load(DeepseekVLV2ForCausalLM, name, tmp_path, "deepseek_vl_v2")
    inputs.pop("position_ids")
    found = model.generate(**inputs, max_new_tokens=5, **WITHOUT_EOS)
    assert torch.equal(found[:, -5:], outputs["greedy"])
    embeds, cache = model.incremental_prefilling(**inputs, chunk_size=7, offload=offload)
    close(cache.layers[0].keys, outputs["prefill_k0"])
    close(cache.layers[-1].values, outputs["prefill_vlast"])
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    again = model.generate(**text, inputs_embeds=embeds, past_key_values=cache, max_new_tokens=5, **WITHOUT_EOS)
    assert torch.equal(again[:, -5:], outputs["greedy"])

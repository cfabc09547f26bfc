"""One pass of each DeepSeek-V2 class: what it takes, what it returns, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from modelwright.errors import RequestError
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from tests.fakes import MHA, MOE, VARIANTS, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import tiny_llama

CLASSES = [DeepseekV2Model, DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification]
close = torch.testing.assert_close


@pytest.fixture
def model():
    return tiny_v2()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_tuple_comes_back_on_request(cls):
    model = tiny_v2(cls)
    named = model(tokens(2, 5), use_cache=False)
    (first,) = model(tokens(2, 5), use_cache=False, return_dict=False)
    assert torch.equal(first, named[0])
    model.config.return_dict = False
    assert isinstance(model(tokens(2, 5)), tuple)


@pytest.mark.parametrize("build", [tiny_v2, tiny_vl2, tiny_llama, tiny_imagegpt], ids=lambda build: build.__name__)
def test_what_a_call_does_not_say_of_its_output_the_config_says(build):
    model, ids = build(), tokens(2, 5, vocab=16)
    wanted = model(ids, output_hidden_states=True).hidden_states
    model.config.output_hidden_states = True
    assert all(map(torch.equal, model(ids).hidden_states, wanted))
    assert model(ids, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(ids), tuple) and not isinstance(model(ids, return_dict=True), tuple)


@pytest.mark.parametrize("build", [tiny_v2, tiny_vl2, tiny_llama, tiny_imagegpt], ids=lambda build: build.__name__)
def test_what_losses_in_chunks_ask_for_is_the_decoder_and_the_head(build):
    """As TRL's and Liger's do: they multiply the decoder's states by the head part by part."""
    model, ids = build(), tokens(2, 5, vocab=16)
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    close(model.get_output_embeddings()(hidden), model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_embeddings_may_stand_for_ids(cls):
    model = tiny_v2(cls)
    embeds = model.get_input_embeddings()(tokens(2, 5))
    assert torch.equal(model(inputs_embeds=embeds)[0], model(tokens(2, 5))[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_ids_and_embeddings_exclude_each_other(cls):
    model = tiny_v2(cls)
    embeds = model.get_input_embeddings()(tokens(2, 5))
    for arguments in ({}, {"input_ids": tokens(2, 5), "inputs_embeds": embeds}):
        with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
            model(**arguments)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_argument_is_refused(cls):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'atention_mask'; did you mean attention_mask\?"):
        tiny_v2(cls)(tokens(1, 3), atention_mask=torch.ones(1, 3))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_every_caller_passes_is_let_through(cls):
    model = tiny_v2(cls)
    extras = {"cache_position": torch.arange(3), "token_type_ids": torch.zeros(1, 3), "output_router_logits": None}
    assert torch.equal(model(tokens(1, 3), **extras)[0], model(tokens(1, 3))[0])


def test_attention_weights_are_refused(model):
    with pytest.raises(RequestError, match="output_attentions must be False, not True"):
        model(tokens(1, 3), output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(RequestError, match="output_attentions must be False, not True"):
        model(tokens(1, 3))


def test_hidden_states_start_with_the_embedding_and_end_normed(model):
    plain, full = model(tokens(2, 5)), model(tokens(2, 5), output_hidden_states=True)
    assert plain.hidden_states is None
    assert [tuple(state.shape) for state in full.hidden_states] == [(2, 5, 32)] * 3
    assert torch.equal(full.hidden_states[0], model.get_input_embeddings()(tokens(2, 5)))
    assert torch.equal(model.lm_head(full.hidden_states[-1]), full.logits)


@pytest.mark.parametrize(
    "build",
    [tiny_v2, lambda: tiny_imagegpt(vocab_size=65), tiny_llama, lambda: tiny_llama(rmsnorm_compute_2d=True)],
    ids=["deepseek_v2", "imagegpt", "llama", "llama, flat"],
)
def test_a_kept_hidden_state_gathers_its_gradient(build):
    model = build()
    result = model(tokens(2, 5), output_hidden_states=True)
    for state in result.hidden_states:
        state.retain_grad()
    result.logits.square().sum().backward()
    assert all(state.grad is not None and state.grad.abs().max() > 0 for state in result.hidden_states)


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 4])])
def test_logits_of_some_tokens_only(kept, model):
    every = model(tokens(2, 5)).logits
    wanted = every[:, -kept:] if isinstance(kept, int) else every[:, kept]
    close(model(tokens(2, 5), logits_to_keep=kept).logits, wanted)


def test_labels_need_every_logit(model):
    with pytest.raises(RequestError, match="logits_to_keep must be 0, not 1"):
        model(tokens(2, 5), labels=tokens(2, 5), logits_to_keep=1)


def test_the_loss_is_the_mean_over_counted_labels(model):
    labels = tokens(2, 5)
    labels[0, :3] = -100
    result = model(tokens(2, 5), labels=labels)
    wanted = F.cross_entropy(result.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(result.loss, wanted)
    assert result.aux_loss is None  # evaluation


def test_a_pass_of_several_counts_its_share_of_the_labels(model):
    model.train()
    whole = model(tokens(4, 6), labels=tokens(4, 6), num_items_in_batch=20)
    parts = [model(part, labels=part, num_items_in_batch=torch.tensor(20)) for part in tokens(4, 6).split(2)]
    close(sum(part.loss for part in parts), whole.loss)
    close(sum(part.aux_loss for part in parts), whole.aux_loss)
    plain = model(tokens(4, 6), labels=tokens(4, 6))
    close(whole.loss, plain.loss)  # 4 rows of 5 shifted labels
    close(model(tokens(4, 6), labels=tokens(4, 6), num_items_in_batch=40).loss, plain.loss / 2)


def test_no_cache_on_request(model):
    assert model(tokens(1, 3), use_cache=False).past_key_values is None
    assert isinstance(model(tokens(1, 3)).past_key_values, DynamicCache)


@pytest.mark.parametrize("base", VARIANTS.values(), ids=VARIANTS)
def test_cached_decode_equals_the_full_pass(base):
    model, ids = tiny_v2(base=base), tokens(2, 9)
    full, cache = model(ids).logits, DynamicCache()
    steps = [model(part, past_key_values=cache).logits for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:7], ids[:, 7:])]
    close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("base", VARIANTS.values(), ids=VARIANTS)
def test_padding_changes_no_row(base, side):
    model, ids = tiny_v2(base=base), tokens(3, 8)
    lengths, mask = [8, 5, 1], torch.zeros(3, 8, dtype=torch.long)
    for i, length in enumerate(lengths):
        mask[i, slice(-length, None) if side == "left" else slice(length)] = 1
    found = model(ids, attention_mask=mask).logits
    for i in range(3):
        own = mask[i].bool()
        close(found[i, own], model(ids[i : i + 1, own]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", [MOE, MHA], ids=["latent", "mha"])
def test_a_padded_batch_continues_from_its_cache(base):
    model, ids = tiny_v2(base=base), tokens(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    cache = DynamicCache()
    model(ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
    found = model(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits
    close(found, model(ids, attention_mask=mask).logits[:, 6:], atol=1e-5, rtol=1e-5)


def test_a_mask_that_forgets_the_past_is_refused(model):
    cache = DynamicCache()
    model(tokens(2, 5), past_key_values=cache)
    match = r"attention_mask has shape \[2, 3\] and must have \[2, 8\]: 2 rows of 5 past and 3 new tokens"
    with pytest.raises(RequestError, match=match):
        model(tokens(2, 3), attention_mask=torch.ones(2, 3), past_key_values=cache)
    with pytest.raises(RequestError, match=r"attention_mask has shape \[1, 3\] and must have \[2, 3\]"):
        model(tokens(2, 3), attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_four_dimensions_is_the_whole_rule(additive, model):
    ids, seen = tokens(2, 6), torch.ones(2, 6, dtype=torch.bool)
    seen[1, :2] = False
    rule = torch.tril(torch.ones(6, 6, dtype=torch.bool)) & seen[:, None, None]
    rule = rule | torch.eye(6, dtype=torch.bool)  # padding sees itself
    mask = torch.zeros(rule.shape).masked_fill(~rule, torch.finfo(torch.float32).min) if additive else rule
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 1, 0, 1, 2, 3]])
    found = model(ids, attention_mask=mask, position_ids=positions).logits
    close(found[seen], model(ids, attention_mask=seen.long()).logits[seen], atol=1e-5, rtol=1e-5)


def test_positions_may_be_given(model):
    ids = tokens(1, 5)
    plain = model(ids).logits
    close(model(ids, position_ids=torch.arange(5)[None] + 7).logits, plain, atol=1e-5, rtol=1e-5)  # RoPE is relative
    assert not torch.allclose(model(ids, position_ids=torch.arange(5)[None] * 3).logits, plain)


def test_one_token_is_enough(model):
    close(model(tokens(1, 1)).logits, model(tokens(1, 4)).logits[:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([0, 2]), "single_label_classification"),
        (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), "multi_label_classification"),
        (torch.tensor([[0.5, 1.0, -1.0], [1.0, 0.0, 0.0]]), "regression"),
    ],
)
def test_a_classifiers_loss_follows_the_problem_type(labels, problem):
    model = tiny_v2(DeepseekV2ForSequenceClassification, num_labels=3, problem_type=problem)
    result = model(tokens(2, 5), labels=labels)
    wanted = {
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem]
    close(result.loss, wanted(result.logits, labels))


@pytest.mark.parametrize("told", ["mask", "pad token", "nothing"])
def test_a_classifier_reads_the_last_token_that_is_not_padding(told):
    pad = 3 if told == "pad token" else None
    model = tiny_v2(DeepseekV2ForSequenceClassification, num_labels=3, pad_token_id=pad)
    ids = tokens(2, 6).clamp(min=4)
    ids[1, 4:] = 3
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]) if told == "mask" else None
    found = model(ids, attention_mask=mask).logits
    alone = [model(ids[:1]).logits, model(ids[1:, : 6 if told == "nothing" else 4]).logits]
    close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)

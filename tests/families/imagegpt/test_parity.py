"""transformers' own ImageGPT on the same weights: logits, losses, gradients, generation, and files across both ways."""

import itertools

import pytest
import torch
import transformers

from modelwright.configs.activations import ACTIVATION_NAMES
from modelwright.families.imagegpt.model import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.hf.cache_names import CACHE_NAME, of_cache
from tests.imagegpts import colours, pair
from tests.llamas import left_padded

SCALES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
SWITCHES = [dict(zip(SCALES, values, strict=True)) for values in itertools.product([True, False], repeat=3)]
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
KINDS = {
    "single_label_classification": torch.tensor([2, 0]),
    "multi_label_classification": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
    "regression": torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]]),
}


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("n_inner", [None, 7])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "".join("ny"[value] for value in s.values()))
@torch.no_grad()
def test_every_switch_without_a_past_and_with_one(switches, n_inner, activation, how):
    ours, theirs = pair(how=how, **switches, n_inner=n_inner, activation_function=activation)
    ids = colours(3, 12)
    mask = left_padded(ids, [12, 7, 2])
    first = {"input_ids": ids[:, :8], "attention_mask": mask[:, :8]}
    found, wanted = ours(**first), theirs(**first)
    seen = mask[:, :8].bool()
    close(found.logits[seen], wanted.logits[seen])
    real = seen.any(dim=1)  # a row that is padding so far has nothing to go on from
    for tokens in (slice(8, 11), slice(11, 12)):
        more = {"input_ids": ids[:, tokens], "attention_mask": mask[:, : tokens.stop]}
        found = ours(**more, cache=found.cache)
        wanted = theirs(**more, **of_cache(wanted[CACHE_NAME]))
        close(found.logits[real], wanted.logits[real])


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@torch.no_grad()
def test_every_activation(activation):
    ours, theirs = pair(activation_function=activation, initializer_range=0.05)
    close(ours(colours(2, 9)).logits, theirs(colours(2, 9)).logits)


@pytest.mark.parametrize(
    "fields", [{}, {"layer_norm_epsilon": 0.3}, {"n_head": 1, "n_embd": 25}, {"n_head": 24, "n_layer": 3}]
)
@torch.no_grad()
def test_shapes_and_the_norms_epsilon(fields):
    ours, theirs = pair(**fields)
    close(ours(colours(2, 24)).logits, theirs(colours(2, 24)).logits)


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@torch.no_grad()
def test_right_padding_positions_and_token_types(how):
    ours, theirs = pair(how=how)
    ids, mask = colours(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    for more in (
        {"attention_mask": mask},
        {"position_ids": torch.arange(9).flip(0)[None] * 2},
        {"token_type_ids": colours(2, 9, seed=1)},
        {"attention_mask": mask, "position_ids": colours(2, 9, seed=2), "token_type_ids": torch.full((2, 9), 16)},
    ):
        close(ours(ids, **more).logits, theirs(ids, **more).logits)
    embeds = ours.get_input_embeddings()(ids)
    close(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_hidden_states_and_tuples():
    ours, theirs = pair(ImageGPTModel)
    found, wanted = (model(colours(2, 9), output_hidden_states=True) for model in (ours, theirs))
    assert len(found.hidden_states) == 3
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        close(one, other)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    head, their_head = pair()
    arguments = {"labels": colours(2, 9), "return_dict": False, "output_hidden_states": True}
    found, wanted = (model(colours(2, 9), **arguments) for model in (head, their_head))
    assert len(found) == len(wanted) == 4
    close(found[0], wanted[0])
    close(found[1], wanted[1])


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("switches", SWITCHES[::3])
def test_the_loss_and_every_gradient(switches, how):
    ours, theirs = pair(how=how, **switches)
    ids, mask = colours(3, 12), left_padded(colours(3, 12), [12, 7, 4]).flip(-1)
    labels = ids.masked_fill(mask == 0, -100)
    ids[:, 0] = labels[:, 0] = 16  # the start token is never foreseen
    losses = [model(ids, attention_mask=mask, labels=labels).loss for model in (ours, theirs)]
    close(*losses)
    for loss in losses:
        loss.backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, wanted[name].grad)


@pytest.mark.parametrize("kind", KINDS)
def test_classification_and_its_three_losses(kind):
    ours, theirs = pair(ImageGPTForImageClassification, num_labels=3, problem_type=kind)
    arguments = {"input_ids": colours(2, 9), "labels": KINDS[kind]}
    found, wanted = ours(**arguments), theirs(**arguments)
    assert found.logits.shape == (2, 3)
    close(found.logits, wanted.logits)
    close(found.loss, wanted.loss)
    for result in (found, wanted):
        result.loss.backward()
    close(ours.score.weight.grad, theirs.score.weight.grad)
    close(ours.transformer.wte.weight.grad, theirs.transformer.wte.weight.grad)


def test_one_label_is_a_regression_and_padding_counts_in_the_mean():
    ours, theirs = pair(ImageGPTForImageClassification, num_labels=1)
    mask = left_padded(colours(2, 9), [9, 4]).flip(-1)
    arguments = {"input_ids": colours(2, 9), "attention_mask": mask, "labels": torch.tensor([0.5, 2.0])}
    close(ours(**arguments).loss, theirs(**arguments).loss)
    close(ours(**arguments).logits, theirs(**arguments).logits)


@pytest.mark.parametrize("plan", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_generation_is_theirs(plan):
    ours, theirs = pair()
    ids = colours(3, 7)
    mask = left_padded(ids, [7, 4, 1])
    arguments = {"attention_mask": mask, "max_new_tokens": 12, **GREEDY}
    wanted = theirs.generate(ids, **arguments, **({} if "cache_implementation" in plan else plan))
    assert torch.equal(ours.generate(ids, **arguments, **plan), wanted)


def test_sampling_is_theirs():
    ours, theirs = pair()
    start = torch.full((4, 1), 16)
    rows = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        rows.append(model.generate(start, max_length=24, do_sample=True, top_k=5, temperature=1.5, pad_token_id=0))
    assert torch.equal(*rows)


@pytest.mark.parametrize("cls", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel])
@pytest.mark.parametrize("fields", [{}, {"n_inner": 7, "num_labels": 5}, {"activation_function": "prelu"}], ids=str)
def test_files_load_across_both_ways(cls, fields, tmp_path):
    ours, theirs = pair(cls, **fields)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="4KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    read, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert {name: t.shape for name, t in read.state_dict().items()} == {
        name: t.shape for name, t in ours.state_dict().items()
    }
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="4KB")
    again = cls.from_pretrained(tmp_path / "theirs")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert torch.equal(read.state_dict()[name], tensor), name
    close(again(colours(2, 9))[0], read(colours(2, 9))[0])


@torch.no_grad()
def test_bfloat16_files_and_their_logits(tmp_path):
    ours, theirs = pair()
    theirs.bfloat16().save_pretrained(tmp_path / "theirs")
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "theirs")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    found, wanted = ours(colours(2, 9)).logits.float(), theirs(colours(2, 9)).logits.float()
    assert (found - wanted).abs().max() < 0.03 * wanted.std()
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours", dtype="auto")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@torch.no_grad()
def test_a_tied_head_reads_what_transformers_writes_and_never_scores_the_start(tmp_path):
    ours, theirs = pair(tie_word_embeddings=True)
    assert ours.lm_head.weight is ours.transformer.wte.weight
    found, wanted = ours(colours(2, 9)).logits, theirs(colours(2, 9)).logits
    assert (found.shape[-1], wanted.shape[-1]) == (16, 17)
    close(found, wanted[..., :16])
    theirs.save_pretrained(tmp_path / "theirs")
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "theirs")
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(again(colours(2, 9)).logits, found)
    again.save_pretrained(tmp_path / "ours")
    back = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours")
    close(back(colours(2, 9)).logits, wanted)

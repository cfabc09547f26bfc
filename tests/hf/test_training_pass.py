"""The training pass of every family: the loss and gradients of ``forward(labels=...)``, in sums, a chunk at a time."""

import pytest
import torch
from torch import nn

from modelwright.ops.cross_entropy import called_cross_entropy, linear_cross_entropy, summed_cross_entropy
from tests.fakes import MHA, MOE, NOAUX, YARN, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, tied": lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True),
    "llama, sliced head": lambda: tiny_llama(base=HUGGING_FACE, pretraining_tp=2),
    "llama, mindformers": lambda: tiny_llama(moe_config=EXPERTS, calculate_per_token_loss=True, ignore_token_id=9),
    "latent": lambda: tiny_v2(base=MOE),
    "yarn": lambda: tiny_v2(base=YARN | {"seq_aux": False}),
    "steered": lambda: tiny_v2(base=NOAUX),
    "mha": lambda: tiny_v2(base=MHA),
    "vl2": lambda: tiny_vl2(),
    "imagegpt": lambda: tiny_imagegpt(vocab_size=65, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
    "imagegpt, tied": lambda: tiny_imagegpt(
        vocab_size=65, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, tie_word_embeddings=True
    ),
}
close = torch.testing.assert_close


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    return request.param().train()


def inputs_of(model, rows=3, length=9):
    """A batch without padding, of whose labels some do not count."""
    if model.config.model_type == "deepseek_vl_v2":
        inputs = vl2_inputs([[(1, 1)], [(1, 1)]])
        labels = inputs["input_ids"].masked_fill(inputs["images_seq_mask"], -100)
        return inputs | {"labels": labels}
    ids = tokens(rows, length)
    return {"input_ids": ids, "labels": ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def mean(passed):
    """The loss of a pass as ``forward`` says it."""
    loss = passed.total / passed.counts.counted
    return loss if passed.balance is None else loss + passed.balance


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_it_is_the_loss_of_forward(model, chunk):
    torch.manual_seed(0)
    inputs = inputs_of(model)
    wanted = model(**inputs).loss
    expected = gradients(model, wanted)
    passed = model.training_loss(**inputs, chunk=chunk)
    close(mean(passed), wanted, atol=1e-6, rtol=1e-6)
    found = gradients(model, mean(passed))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-9, name
    assert model.training_counts(**inputs) == passed.counts


def test_a_head_that_does_more_than_a_product_is_called(model):
    torch.manual_seed(0)
    inputs, head = inputs_of(model), model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, given, logits: logits * 2)
    assert getattr(model, "language", model).head_weight() is None
    wanted = model(**inputs).loss
    expected = gradients(model, wanted)
    passed = model.training_loss(**inputs, chunk=4)
    close(mean(passed), wanted, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients(model, mean(passed)).items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-9, name
    handle.remove()


def test_under_autocast(model):
    torch.manual_seed(0)
    inputs = inputs_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(**inputs).loss
        passed = model.training_loss(**inputs, chunk=4)
    close(mean(passed), wanted, atol=1e-3, rtol=1e-3)
    mean(passed).backward()


def test_no_gradients_are_taken_where_none_are_asked_for(model):
    inputs = inputs_of(model)
    with torch.no_grad():
        passed = model.training_loss(**inputs, chunk=4)
    assert not passed.total.requires_grad
    close(mean(passed), mean(model.training_loss(**inputs, chunk=4)).detach())


def test_a_batch_of_which_nothing_counts(model):
    inputs = inputs_of(model)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    passed = model.training_loss(**inputs)
    assert passed.counts.counted == 0 and passed.total == 0
    passed.total.backward()


SEQUENCES = {"latent", "steered", "mha", "vl2"}


@pytest.mark.parametrize("name", ["latent", "yarn", "steered", "mha", "llama, mindformers"])
def test_padding_balances_and_loads_nothing(name):
    """Rows alone judge: of unequal length, padded, and packed into one row with a tail."""
    model, lengths = MODELS[name]().train(), [9, 5, 7]
    ids = [tokens(1, length, seed=length) for length in lengths]
    alone = [model.training_loss(input_ids=row, labels=row) for row in ids]
    padded = torch.cat([nn.functional.pad(row, (0, 9 - row.shape[1]), value=3) for row in ids])
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    in_rows = model.training_loss(input_ids=padded, labels=padded.masked_fill(~mask, -100), attention_mask=mask.long())
    tail = torch.cat([*ids, torch.full((1, 4), 3)], dim=1)
    numbers = torch.tensor([0] * 9 + [1] * 5 + [2] * 7 + [3] * 4)[None]
    labels = tail.masked_fill(numbers == 3, -100)
    labels[0, [0, 9, 14]] = -100
    packed = model.training_loss(input_ids=tail, labels=labels, seq_idx=numbers)
    counted = [part.counts.sequences if name in SEQUENCES else part.counts.tokens for part in alone]
    assert [part.balance_items for part in (in_rows, packed)] == [sum(counted)] * 2
    for found in (in_rows, packed):
        assert (found.counts.sequences, found.counts.tokens) == (3, 21)
        close(found.total, sum(part.total for part in alone), atol=1e-4, rtol=1e-5)
        assert torch.equal(found.loads, sum(part.loads for part in alone))
    if name in SEQUENCES:
        wanted = sum(part.balance * n for part, n in zip(alone, counted, strict=True)) / 3
        close(in_rows.balance, wanted, atol=1e-7, rtol=1e-5)
    close(in_rows.balance, packed.balance, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_the_chunked_loss_is_the_whole_ones(dtype, frozen):
    """Against fp64; in bf16 no further from it than torch's own."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(37, 16, generator=generator), torch.randn(50, 16, generator=generator)
    targets = torch.randint(50, (37,), generator=generator)
    x, weight = (part.to(dtype).requires_grad_(frozen != name) for name, part in (("x", x), ("weight", weight)))
    exact = [part.detach().double().requires_grad_() for part in (x, weight)]
    wanted = summed_cross_entropy_fp64(*exact, targets)
    expected = torch.autograd.grad(wanted, exact)
    wholes = []
    for how in ("whole", "chunks", "called"):
        if how == "whole":
            loss = summed_cross_entropy(x @ weight.T, targets)
        elif how == "chunks":
            loss = linear_cross_entropy(x, weight, targets, 8)
        else:
            loss = called_cross_entropy(lambda part: part @ weight.T, x, targets, 8)
        own = [part for part in (x, weight) if part.requires_grad]
        meant = [g for part, g in zip((x, weight), expected, strict=True) if part.requires_grad]
        found = torch.autograd.grad(loss * 0.5, own)
        errors = [float((g.double() * 2 - w).norm() / w.norm()) for g, w in zip(found, meant, strict=True)]
        wholes.append([abs(float((loss - wanted).detach())) / float(wanted.detach()), *errors])
    for found in wholes[1:]:
        assert all(own <= 1.5 * theirs + 1e-6 for own, theirs in zip(found, wholes[0], strict=True)), wholes


def summed_cross_entropy_fp64(x, weight, targets):
    return nn.functional.cross_entropy(x @ weight.T, targets, reduction="sum")


def test_the_gradient_that_was_taken_early_is_given_once():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.arange(4), 2)
    (loss * 3).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

"""Which labels of a batch count, and which tokens are padding, in every family: rows alone and sums by hand judge."""

import pytest
import torch
import torch.nn.functional as F

from tests.fakes import MHA, MOE, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, left_padded, tiny_llama
from tests.trainers import losses_of, make_trainer

MODELS = {
    "llama": lambda **fields: tiny_llama(base=HUGGING_FACE, **fields),
    "llama, mindformers": lambda **fields: tiny_llama(calculate_per_token_loss=True, **fields),
    "latent": lambda **fields: tiny_v2(base=MOE, aux_loss_alpha=0.0, **fields),
    "mha": lambda **fields: tiny_v2(base=MHA, aux_loss_alpha=0.0, **fields),
    "vl2": lambda **fields: tiny_vl2(language={"aux_loss_alpha": 0.0} | fields),
    "imagegpt": lambda **fields: tiny_imagegpt(vocab_size=65, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, **fields),
}
LENGTHS = [9, 5, 1, 7]
close = torch.testing.assert_close


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def build(request):
    return request.param


def batch():
    ids, mask = tokens(4, 9), left_padded(tokens(4, 9), LENGTHS)
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def summed(logits, labels):
    flat = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum"), int((labels[:, 1:] != -100).sum())


def alone(model, inputs):
    """The summed loss of the rows without their padding, and how many labels count in them."""
    sums = []
    for i, length in enumerate(LENGTHS):
        ids, labels = (inputs[name][i : i + 1, -length:] for name in ("input_ids", "labels"))
        positions = {"position_ids": torch.arange(9 - length, 9)[None]} if counts_padding(model) else {}
        sums.append(summed(model(ids, **positions).logits, labels))
    return sum(total for total, _ in sums), sum(counted for _, counted in sums)


def counts_padding(model):
    return not hasattr(model.config, "kv_numbers_per_token") and model.config.model_type != "deepseek_vl_v2"


@torch.no_grad()
def test_padding_on_the_left_foresees_nothing(build):
    model, inputs = build(), batch()
    total, counted = alone(model, inputs)
    close(model(**inputs).loss, total / counted, atol=1e-5, rtol=1e-5)
    close(model(**inputs, num_items_in_batch=100).loss, total / 100, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pictures_in_padded_rows(build):
    model, rows = tiny_vl2(), [[(1, 1)], [], [(1, 1), (2, 1)]]
    inputs = vl2_inputs(rows)
    labels = inputs["input_ids"].masked_fill(inputs["images_seq_mask"] | (inputs["attention_mask"] == 0), -100)
    sums = []
    for i in range(3):
        own = inputs["attention_mask"][i].bool()
        row = {name: part[i : i + 1] for name, part in inputs.items()}
        row |= {name: row[name][:, own] for name in ("input_ids", "attention_mask", "images_seq_mask")}
        sums.append(summed(model(**row).logits, labels[i : i + 1, own]))
    total, counted = (sum(part) for part in zip(*sums, strict=True))
    close(model(**inputs, labels=labels).loss, total / counted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_labels_of_the_tokens_that_follow(build):
    model, ids = build(), tokens(2, 9)
    following = tokens(2, 9, seed=1).masked_fill(torch.rand(2, 9) < 0.3, -100)
    following[:, -1] = 5
    flat = model(ids).logits.flatten(0, 1)
    wanted = F.cross_entropy(flat, following.flatten(), reduction="sum")
    found = model(ids, labels=ids, shift_labels=following)
    close(found.loss, wanted / (following != -100).sum(), atol=1e-5, rtol=1e-5)
    assert found.logits.shape[:2] == (2, 9)
    items = model(ids, shift_labels=following, num_items_in_batch=torch.tensor(100)).loss
    close(items, wanted / 100, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pad", [2, 7])
@torch.no_grad()
def test_an_id_says_nothing_about_padding_in_hugging_faces_dialect(pad, build):
    """MindFormers' is tested with its fields."""
    if build is MODELS["llama, mindformers"]:
        return
    ids = tokens(2, 9)
    ids[0, 3], ids[1, 5], ids[1, 8] = pad, pad, pad
    padded, plain = build(pad_token_id=pad, eos_token_id=2), build(eos_token_id=2)
    for mask in (None, torch.ones_like(ids)):
        found, wanted = (model(ids, attention_mask=mask, labels=ids) for model in (padded, with_state(plain, padded)))
        assert torch.equal(found.logits, wanted.logits)
        total, counted = summed(found.logits, ids)
        close(found.loss, total / counted)


def with_state(model, other):
    model.load_state_dict(other.state_dict())
    return model


@pytest.mark.one_in(3)
@torch.no_grad()
def test_generation_attends_to_drawn_padding(build):
    """Each step's scores are those of one whole pass, whatever id the model draws and whichever way it is told."""
    model, ids = build(), tokens(2, 6)
    start = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    drawn = int(start[0, 6])  # from now on the padding id
    model = with_state(build(pad_token_id=drawn), model)
    model.generation_config.pad_token_id = drawn
    plan = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    ids = ids.masked_fill(ids == drawn, drawn - 1)
    for how in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            suppress_tokens=[64],
            **plan,
            **how,
            return_dict_in_generate=True,
            output_logits=True,
        )
        whole = model(found.sequences, attention_mask=torch.ones_like(found.sequences)).logits[:, 5:-1]
        close(torch.stack(found.logits, 1), whole, atol=1e-4, rtol=1e-4)
    assert (found.sequences[:, 6:-1] == drawn).any()


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "accumulated"), [*((name, 1) for name in MODELS), ("llama", 2)])
def test_a_trainer_reads_the_loss_of_the_rows(name, accumulated, tmp_path):
    build = MODELS[name]
    model, inputs = build(pad_token_id=0), batch()
    if build is not MODELS["llama, mindformers"]:  # to which 0 is padding, wherever it stands
        inputs["input_ids"][0, 3] = 0
    if accumulated == 2:  # what padding would foresee must be left out by whoever counts over several passes
        inputs["labels"][inputs["attention_mask"].diff(dim=1, prepend=torch.ones(4, 1)) == 1] = -100
    with torch.no_grad():
        total, counted = alone(model, inputs)
    rows = [{name: part[i] for name, part in inputs.items()} for i in range(4)]
    how = {"batch": 4 // accumulated, "gradient_accumulation_steps": accumulated}
    [loss] = losses_of(make_trainer(model, tmp_path, 1, rows, **how))
    assert loss == pytest.approx(float(total / counted), abs=1e-4)

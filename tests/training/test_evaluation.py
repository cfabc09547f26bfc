"""Held-out loss by hand and by ours, for every family; a run that is measured goes on as one that is not."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modelwright import load, zoo
from modelwright.errors import RequestError, RequestFailed
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.training.evaluation import Evaluation, held_out_loss, measure, untouched
from tests.fakes import MOE, tokens
from tests.llamas import HUGGING_FACE

MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**HUGGING_FACE)),
    "llama with dropout": lambda: LlamaForCausalLM(LlamaConfig(**HUGGING_FACE | {"attention_dropout": 0.3})),
    "experts": lambda: DeepseekV2ForCausalLM(DeepseekV2Config(**MOE)),
}


def passes():
    """Two passes of unequal size, the second padded on the right and learned in part."""
    ids = tokens(2, 9)
    second = tokens(3, 7, seed=1)
    mask = torch.ones_like(second)
    mask[2, 4:] = 0
    labels = second.masked_fill(mask == 0, -100)
    labels[0, :3] = -100
    return [
        {"input_ids": ids, "labels": ids.clone()},
        {"input_ids": second, "attention_mask": mask, "labels": labels},
    ]


@torch.no_grad()
def by_hand(model):
    """The mean over all labels, of logits in float64."""
    total, count = 0.0, 0
    for each in passes():
        labels = each["labels"]
        arguments = {key: value for key, value in each.items() if key != "labels"}
        logits = model.eval()(**arguments).logits.double()[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        total, count = total + losses.item(), count + int((labels[:, 1:] != -100).sum())
    return total / count, count


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_every_label_once(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    found = measure(model, {"rows": passes})["rows"]
    wanted, count = by_hand(model)
    assert found.labels == count and found.loss == pytest.approx(wanted, rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(wanted), rel=1e-6)
    assert held_out_loss(model.eval(), passes(), chunk=3).loss == pytest.approx(wanted, rel=1e-6)


def train(model, steps, measured):
    """Losses and the parameters of some steps, with what draws random numbers between them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    losses = []
    for step in range(steps):
        model.train()
        ids = tokens(2, 9, seed=step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.item(), torch.rand(1).item(), random.random(), np.random.rand()))
        if measured:
            measured(model)
    return losses, {name: value.detach().clone() for name, value in model.state_dict().items()}


def draws_and_measures(model):
    model.layers_before = [module.training for module in model.modules()]
    measure(model, {"rows": passes, "others": passes()})
    with untouched(model):
        torch.rand(3), random.random(), np.random.rand()
    assert [module.training for module in model.modules()] == model.layers_before


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_measured_goes_on_bit_for_bit(name):
    runs = []
    for measured in (None, draws_and_measures):
        torch.manual_seed(0)
        runs.append(train(MODELS[name](), 4, measured))
    (losses, weights), (others, theirs) = runs
    assert losses == others
    assert all(torch.equal(weights[each], theirs[each]) for each in weights)


def test_frozen_modules_stay_in_their_own_mode():
    model = MODELS["llama"]().train()
    model.model.layers[0].eval()
    with pytest.raises(RuntimeError, match="within"), untouched(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("within")
    assert model.training and not model.model.layers[0].training


def test_a_set_without_labels_is_refused():
    ids = tokens(1, 4)
    nothing = [{"input_ids": ids, "labels": torch.full_like(ids, -100)}]
    with pytest.raises(RequestError, match="empty has no label that counts"):
        measure(MODELS["llama"](), {"empty": nothing})


@dataclass(frozen=True)
class When:
    every: int | None = 4
    generate: int = 1
    epochs: int | None = None


class Kept:
    def __init__(self):
        self.found, self.notes = [], []

    def evaluated(self, step, found):
        self.found.append((step, found))

    def note(self, sentence):
        self.notes.append(sentence)


def sample(**values):
    plain = {"place": "rows:1", "prompt": "a", "wanted": "b", "said": "b", "exact": True, "pictures": (), "drawn": None}
    return SimpleNamespace(**plain | values)


def test_losses_and_answers_are_reported_and_failing_answers_are_said(tmp_path):
    model, report = MODELS["llama"]().train(), Kept()
    answers = [sample(), sample(said="c", exact=False)]
    Evaluation(When(), {"rows": passes}, report, tmp_path, lambda asked: {"rows": answers})(model, 4)
    [(step, found)] = report.found
    assert step == 4 and found["rows"]["exact"] == 0.5 and found["rows"]["labels"] > 0
    assert (tmp_path / "samples" / "step-000004" / "answers.md").exists() and model.training

    def broken(asked):
        assert not asked.training
        raise RequestFailed("the model's scores of the next token are NaN")

    Evaluation(When(), {"rows": passes}, report, tmp_path, broken)(model, 8)
    assert "exact" not in report.found[1][1]["rows"]
    assert report.notes == ["no sample answers after step 8: the model's scores of the next token are NaN"]


def test_pictures_are_measured_too():
    loaded = load(zoo.path("vl2-nano"), device="cpu", dtype="float32")
    prompt = loaded.processor.process_one("<image>\nHow many circles are there?", [np.zeros((96, 96, 3), np.uint8)])
    batch = {key: torch.as_tensor(np.asarray(getattr(prompt, key)))[None] for key in ("input_ids", "images_seq_mask")}
    batch |= {"images": torch.as_tensor(prompt.images)[None]}
    batch |= {"images_spatial_crop": torch.as_tensor(prompt.images_spatial_crop)[None]}
    labels = batch["input_ids"].clone()
    found = held_out_loss(loaded.model, [batch | {"labels": labels}])
    with torch.no_grad():
        logits = loaded.model(**batch).logits.double()[0, :-1]
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels[0, 1:]).item(), rel=1e-5)

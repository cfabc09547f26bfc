"""Stages of a pipeline: what a model computes when its embedding, layers and head are spread over several holders."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from modelwright.hf.arguments import PassInputs
from tests.fakes import DENSE, MHA, MOE, NOAUX, picture_rows, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import EXPERTS, tiny_llama

DEEP: dict[str, Any] = {"num_hidden_layers": 3}
STEERED = EXPERTS | {"balance_via_topk_bias": True, "topk_bias_update_rate": 0.25}
ENDS = {"eos_token_id": 7, "use_eod_attn_mask_compression": True, "reset_position_ids": True}

MODELS: dict[str, Callable[[], Any]] = {
    "deepseek_v2": lambda: tiny_v2(base=DENSE, **DEEP),
    "deepseek_v2, experts": lambda: tiny_v2(base=MOE, aux_loss_alpha=0.5, **DEEP),
    "deepseek_v2, steered": lambda: tiny_v2(base=NOAUX, aux_loss_alpha=0.5, seq_aux=False, **DEEP),
    "deepseek_v2, mha": lambda: tiny_v2(base=MHA, **DEEP),
    "deepseek_vl2": lambda: tiny_vl2(language=MOE | DEEP | {"aux_loss_alpha": 0.5}),
    "deepseek_vl2, 1D": lambda: tiny_vl2(language=MOE | DEEP, tile_tag="1D"),
    "imagegpt": lambda: tiny_imagegpt(n_layer=3, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
    "llama": lambda: tiny_llama(num_layers=3),
    "llama, flat": lambda: tiny_llama(num_layers=3, rmsnorm_compute_2d=True, residual_dtype="float32"),
    "llama, packed": lambda: tiny_llama(num_layers=3, **ENDS),
    "llama, experts": lambda: tiny_llama(num_layers=3, moe_config=STEERED),
}
STAGES = {
    "halves": [range(2), range(2, 3)],
    "thirds": [range(1), range(1, 2), range(2, 3)],
    "embedding alone": [range(0), range(3)],
}


def batch_of(model: Any) -> dict[str, Tensor]:
    """Two rows; padded where the model looks for padding."""
    if hasattr(model, "encode_pictures"):
        count = (lambda grid: 5 * (1 + grid[0] * grid[1])) if model.config.tile_tag == "1D" else picture_rows
        return vl2_inputs([[(2, 1)], []], count=count)
    if model.base_model_prefix == "transformer":
        return {"input_ids": colours(2, 6)}
    ids = tokens(2, 8)
    ids[:, 3] = 7
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@dataclass
class Whole:
    """What one holder computes of a training pass."""

    logits: Tensor
    aux_loss: Tensor | None
    gradients: dict[str, Tensor]


def causal_of(model: Any) -> Any:
    return model.language if hasattr(model, "encode_pictures") else model


def train_whole(model: Any, batch: dict[str, Tensor]) -> Whole:
    result = model(**batch)
    loss = result.logits.square().mean() + (0 if result.aux_loss is None else result.aux_loss)
    loss.backward()
    return Whole(result.logits, result.aux_loss, gradients_of(model))


def gradients_of(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def run_stage(stage: Any, batch: dict[str, Tensor], received: Tensor | None, last: bool) -> tuple[Tensor, Any]:
    """A stage's output, and its own balance loss; all but the hidden states is made of the batch on each stage."""
    causal = causal_of(stage)
    decoder = causal.base_model
    inputs = PassInputs.of(batch["input_ids"], mask=batch.get("attention_mask"))
    positions, attention = decoder.positions_of(inputs), decoder.attention_of(inputs)
    x = received
    if x is None and causal is not stage:
        x = decoder.embed(positions, inputs_embeds=stage.prepare_inputs_embeds(**batch))
    elif x is None:
        x = decoder.embed(positions, batch["input_ids"])
    ran = decoder.run_layers(x, positions, attention)
    balance = decoder.balance_loss(ran.routings, inputs.batch) if ran.routings else None
    return causal.head(decoder.finish(ran.x)) if last else ran.x, balance


@pytest.mark.one_in(4)
@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("name", MODELS)
def test_stages_together_are_the_whole(name, stages):
    """Logits, balance losses, loads and the gradient of every parameter, which has one name on every stage."""
    model = MODELS[name]().train()
    batch = batch_of(model)
    held = [copy.deepcopy(model) for _ in stages]
    for number, (stage, layers) in enumerate(zip(held, stages, strict=True)):
        stage.keep_stage(layers, embedding=number == 0, head=number == len(stages) - 1)
    whole = train_whole(model, batch)

    received, passed, balances = None, [], []
    for number, stage in enumerate(held):
        made, balance = run_stage(stage, batch, received, last=number == len(stages) - 1)
        passed.append((received, made, balance))
        balances += [] if balance is None else [balance]
        received = made.detach().requires_grad_()
    logits = passed[-1][1]
    gradient = None
    for received, made, balance in reversed(passed):
        loss = made.square().mean() if gradient is None else (made * gradient).sum()
        (loss if balance is None else loss + balance).backward()
        gradient = None if received is None else received.grad

    assert torch.equal(logits, whole.logits)
    if whole.aux_loss is not None:
        torch.testing.assert_close(torch.stack(balances).sum(), whole.aux_loss)
    found: dict[str, Tensor] = {}
    for stage in held:
        own = gradients_of(stage)
        assert found.keys().isdisjoint(own)
        found |= own
    assert found.keys() == whole.gradients.keys()
    for key, wanted in whole.gradients.items():
        torch.testing.assert_close(found[key], wanted, msg=lambda text, key=key: f"{key}: {text}")
    loads = {name: buffer for stage in held for name, buffer in stage.named_buffers() if name.endswith("load")}
    for key, buffer in model.named_buffers():
        if key.endswith("load"):
            assert torch.equal(loads[key], buffer) and buffer.sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_stage_lets_go_of_what_others_hold(name):
    model = MODELS[name]()
    wanted = dict(model.state_dict())
    first, middle, last = (copy.deepcopy(model) for _ in range(3))
    first.keep_stage(range(1), embedding=True, head=False)
    middle.keep_stage(range(1, 2), embedding=False, head=False)
    last.keep_stage(range(2, 3), embedding=False, head=True)
    held = [dict(stage.state_dict()) for stage in (first, middle, last)]
    assert sum(map(len, held)) == len(wanted)
    assert all(torch.equal(tensor, wanted[key]) for part in held for key, tensor in part.items())
    numbers = {key.split("layers.")[1].split(".")[0] for key in held[1] if "layers." in key}
    assert numbers <= {"1"}
    for part, stage in zip(held, (first, middle, last), strict=True):
        assert set(stage.places()) <= set(model.places()) and set(part) == set(stage.state_dict())

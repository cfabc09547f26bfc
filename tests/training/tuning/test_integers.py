"""LoRA beside weights stored in integers, against the same LoRA beside the numbers that those integers stand for."""

import copy

import pytest
import torch

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.configs.run import TunePart
from modelwright.errors import ConfigError
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.weight_only import dequantise
from modelwright.training.tuning import load_adapter, lora_of, merge, save_adapter, settle
from tests.fakes import MOE, tiny_v2, tokens
from tests.llamas import HUGGING_FACE, tiny_llama
from tests.training.tuning.tunes import Lora, near

WIDE = {"hidden_size": 64, "intermediate_size": 128}
MODELS = {
    "v2": lambda: tiny_v2(base=MOE | WIDE | {"moe_intermediate_size": 64, "q_lora_rank": 64, "v_head_dim": 16}),
    "llama": lambda: tiny_llama(base=HUGGING_FACE | WIDE),
}


def pair_of(name, method):
    """A quantized model, and the plain one whose weights are the numbers that it stores."""
    plain = MODELS[name]()
    stored = quantize_model(copy.deepcopy(plain), method)
    state = plain.state_dict()
    for prefix, module in stored.named_modules():
        if isinstance(module, QuantizedLinear):
            state[f"{prefix}.weight"] = dequantise(module.stored)
        elif isinstance(module, QuantizedExperts):
            for stack, weight in zip(("gate_up_proj", "down_proj"), module.stored, strict=True):
                state[f"{prefix}.{stack}"] = dequantise(weight)
    plain.load_state_dict(state)
    for model in (stored, plain):
        settle(model, TunePart(lora=Lora()))
        with torch.no_grad():
            for each, pair in lora_of(model).items():
                pair.B.normal_(std=0.05, generator=torch.Generator().manual_seed(len(each)))
    return stored, plain


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_gradients_pass_the_integers(name, method):
    stored, plain = pair_of(name, method)
    ids = tokens(2, 9)
    losses = [model.train()(input_ids=ids, labels=ids).loss for model in (stored, plain)]
    assert near(losses[0], losses[1], 1e-5)
    for loss in losses:
        loss.backward()
    theirs = lora_of(plain)
    assert lora_of(stored).keys() == theirs.keys()
    for key, pair in lora_of(stored).items():
        assert near(pair.A.grad, theirs[key].A.grad, 1e-4) and near(pair.B.grad, theirs[key].B.grad, 1e-4), key


def test_rounded_inputs_pass_gradients_as_they_are():
    plain = MODELS["llama"]()
    stored = quantize_model(copy.deepcopy(plain), "int8-dynamic")
    layer = stored.model.layers[0].mlp.down_proj
    x = torch.randn(5, 128, requires_grad=True)
    layer(x).backward(torch.ones(5, 64))
    wanted = torch.ones(5, 64) @ dequantise(layer.stored)
    torch.testing.assert_close(x.grad, wanted)


def test_no_wide_copy_is_kept():
    """Of a product with a stored weight nothing of the weight's size waits for the backward pass."""
    layer = quantize_model(MODELS["llama"](), "int4").model.layers[0].mlp.gate_proj
    kept = []
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x).sum()
    assert all(tensor.numel() < 64 * 128 for tensor in kept)


def test_integers_train_under_lora_alone(tmp_path):
    stored, _ = pair_of("v2", "int8")
    with pytest.raises(ConfigError, match="train under LoRA alone"):
        settle(quantize_model(MODELS["v2"](), "int8"), TunePart(rates={"attention": 1e-5}))
    with pytest.raises(ConfigError, match="stored in integers"):
        merge(stored)
    save_adapter(stored, tmp_path)
    again = quantize_model(MODELS["v2"](), "int8")
    load_adapter(again, tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert near(again.eval()(ids).logits, stored.eval()(ids).logits, 1e-6)
    rows = {row.part: row for row in settle(quantize_model(MODELS["v2"](), "int4"), TunePart(lora=Lora())).table}
    whole = {row.part: row for row in settle(MODELS["v2"](), TunePart(lora=Lora())).table}
    assert rows == whole


def test_a_frozen_part_keeps_an_adapters_pairs_beside_integers_too(tmp_path):
    """A matrix in integers is no parameter, and its pair would train."""
    stored, _ = pair_of("llama", "int8")
    save_adapter(stored, tmp_path)
    again = quantize_model(MODELS["llama"](), "int8")
    found = settle(again, TunePart(freeze=("attention",)), adapter=tmp_path)
    assert lora_of(again).keys() == lora_of(stored).keys()
    assert found.parameters and not any("self_attn" in name for name in found.parameters)


def test_a_merged_export_is_refused_before_the_run():
    with pytest.raises(ConfigError, match="format is merged"):
        settle(quantize_model(MODELS["llama"](), "int8"), TunePart(lora=Lora(format="merged")))

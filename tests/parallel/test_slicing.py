"""What each rank keeps of a model, and that the parts say what the whole said, by dense passes of ranks as threads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.engine.slicing import slice_decoder
from modelwright.errors import ConfigError
from modelwright.parallel import Mesh, is_sliced
from tests.fakes import MHA, MOE, tiny_v2, tokens
from tests.imagegpts import TINY, tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama
from tests.parallel.models import MODELS, build
from tests.parallel.threads import in_ranks

WITHIN = 1e-5


def decoder_of(model: Any) -> Any:
    return model.language if hasattr(model, "language") else model


def part_of(model: Any, mesh: Mesh) -> Any:
    """A copy of the model's decoder, cut down."""
    mine = copy.deepcopy(decoder_of(model))
    slice_decoder(mine, mesh)
    return mine


def compare(model: Any, size: int, within: float = WITHIN) -> None:
    """Logits of 11 tokens by one rank and by `size`."""
    decoder = decoder_of(model)
    ids = tokens(2, 11, vocab=decoder.get_input_embeddings().weight.shape[0] - 1)
    with torch.no_grad():
        wanted = decoder(input_ids=ids).logits
    for found in in_ranks(size, lambda mesh: part_of(model, mesh)(input_ids=ids).logits):
        torch.testing.assert_close(found, wanted, atol=within, rtol=0)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_add_up_to_the_whole(name, size):
    compare(build(name), size)


@pytest.mark.parametrize("size", [3, 5])
def test_widths_and_experts_need_not_be_divisible(size):
    shape = {"hidden_size": 30, "num_attention_heads": size, "num_key_value_heads": size, "vocab_size": 64}
    compare(tiny_v2(base=MOE, **shape, moe_intermediate_size=7), size)
    compare(tiny_llama(base=HUGGING_FACE | shape, intermediate_size=17), size)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("expert_ranks", [2, 4])
def test_experts_are_shared_by_as_many_ranks_as_the_config_says(expert_ranks, size):
    """Each group keeps whole experts, and each of its ranks some of their hidden units. To be built needs no ranks."""
    model = tiny_v2(base=MOE, ep_size=expert_ranks)
    if expert_ranks > size:
        with pytest.raises(ConfigError, match=r"the ranks \(2\) must be divisible by the expert-parallel ranks \(4\)"):
            part_of(model, Mesh(0, size))
        return
    compare(model, size)
    stack = part_of(model, Mesh(size - 1, size)).model.layers[1].mlp.experts.down_proj
    assert stack.shape == (8 // expert_ranks, 32, 16 // (size // expert_ranks))


def test_a_rank_keeps_its_part_alone():
    """Bytes, not views: what is not kept is let go of."""
    model = tiny_v2(base=MHA | {"num_key_value_heads": 4})
    mine = part_of(model, Mesh(1, 2))
    held = {name: parameter for name, parameter in mine.named_parameters()}
    whole = {name: parameter for name, parameter in model.named_parameters()}
    assert held.keys() == whole.keys()
    kept_whole = ("embed_tokens", "norm", "mlp.gate.weight")
    for name, parameter in held.items():
        share = 1 if any(part in name for part in kept_whole) else 2
        assert parameter.numel() * share == whole[name].numel(), name
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
        assert not parameter.requires_grad
    assert is_sliced(mine) and not is_sliced(model)


def test_each_rank_keeps_other_rows_of_merged_projections():
    """[q; k; v] of one key head after another: the second of two ranks has the second key head's."""
    model = tiny_llama(qkv_concat=True)
    weight = model.model.layers[0].self_attn.qkv_proj.weight
    own = part_of(model, Mesh(1, 2)).model.layers[0].self_attn
    assert torch.equal(own.qkv_proj.weight, weight[len(weight) // 2 :])
    assert (own.widths, own.groups) == ([16, 8, 8], 1)


def test_biases_of_sums_are_added_once():
    model = tiny_llama(attn_proj_has_bias=True)
    nn.init.ones_(model.model.layers[0].self_attn.o_proj.bias)
    found = [part_of(model, Mesh(rank, 3 - 1)).model.layers[0].self_attn.o_proj.bias for rank in range(2)]
    assert [float(bias.sum()) for bias in found] == [32.0, 0.0]


def test_a_mesh_of_one_leaves_a_model_alone():
    model = tiny_llama()
    before = dict(model.named_parameters())
    slice_decoder(model, Mesh())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not is_sliced(model) and all(parameter.requires_grad for parameter in model.parameters())


def wide_int4() -> Any:
    """Hidden units that three ranks cannot share at runs of 64."""
    fields = {"hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 3, "num_key_value_heads": 3}
    return quantize_model(tiny_llama(base=HUGGING_FACE | fields), "int4", group=64)


class Adapted(nn.Module):
    """What an adapter library puts in a layer's place."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer, self.weight = layer, layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def adapted() -> Any:
    model = tiny_llama()
    model.model.layers[0].self_attn.q_proj = Adapted(model.model.layers[0].self_attn.q_proj)
    return model


@pytest.mark.parametrize(
    ("build", "size", "message"),
    [
        (lambda: tiny_v2(), 3, r"the attention heads \(4\) must be divisible by the ranks \(3\)"),
        (lambda: tiny_imagegpt(), 4, r"the attention heads \(6\) must be divisible by the ranks \(4\)"),
        (
            lambda: tiny_llama(base=HUGGING_FACE, hidden_size=48, num_attention_heads=6, num_key_value_heads=3),
            2,
            r"the key and value heads \(3\) must be divisible by the ranks \(2\), or divide them",
        ),
        (
            lambda: tiny_llama(base=HUGGING_FACE, intermediate_size=3),
            4,
            r"the hidden units of a feed-forward \(3\) must be at least the ranks \(4\)",
        ),
        (
            lambda: tiny_llama(moe_config=EXPERTS | {"expert_num": 2}),
            4,
            r"the routed experts \(2\) must be at least the expert-parallel ranks \(4\)",
        ),
        (
            lambda: quantize_model(tiny_llama(), "int8-dynamic"),
            2,
            'quant_method "int8_dynamic" rounds whole rows of inputs, of which several ranks see parts: it needs 1',
        ),
        (wide_int4, 3, "whole runs of 64, whose int4 steps lie together; got 0 to 85 of 256"),
        (adapted, 2, "several ranks share plain layers and those that modelwright quantized, and this is a Adapted"),
    ],
)
def test_what_ranks_cannot_share_is_refused(build, size, message):
    with pytest.raises(ConfigError, match=message):
        slice_decoder(build(), Mesh(0, size))


def test_every_number_of_ranks_that_divides_the_heads_serves():
    model = tiny_imagegpt(n_embd=TINY["n_embd"], n_head=6)
    for size in (1, 2, 3, 6):
        compare(model, size)

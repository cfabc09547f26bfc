"""What torch's data parallelism does to a model before each pass: the first rank's buffers go over the others'."""

from typing import Any

import pytest
import torch

from modelwright.layers.balance import steered_routers
from tests.fakes import NOAUX, tiny_v2, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

PASSES = 2
MODELS = {
    "deepseek_v2": lambda: tiny_v2(base=NOAUX),
    "llama": lambda: tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS | {"balance_via_topk_bias": True}),
}


def loads(model: Any) -> list[torch.Tensor]:
    return [router.load.clone() for router in steered_routers(model)]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_loads_of_several_passes_are_each_ranks_own(build):
    """As without ``no_sync``: buffers are sent before every pass of a step, and the step moves biases by all loads."""
    ranks, whole = [build().train() for _ in range(2)], build().train()
    for number in range(PASSES):
        for name, buffer in ranks[1].named_buffers():
            buffer.copy_(ranks[0].get_buffer(name))
        for rank, model in enumerate(ranks):
            ids = tokens(2, 9, seed=2 * number + rank)
            model(ids)
            whole(ids)
    summed = [one + other for one, other in zip(*map(loads, ranks), strict=True)]
    assert summed and all(torch.equal(one, other) for one, other in zip(summed, loads(whole), strict=True))

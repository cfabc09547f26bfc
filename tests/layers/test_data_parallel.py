"""Torch's data parallelism: what it does to a model before each pass, and what two processes learn under it."""

from typing import Any

import pytest
import torch

from modelwright.layers.balance import steered_routers
from tests.fakes import NOAUX, tiny_v2, tokens
from tests.layers.data_parallel_ranks import MODELS as RANKED
from tests.layers.data_parallel_ranks import RANKS, train_ranks, trained
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes end with, with one pass a step and with several."""
    return train_ranks(tmp_path_factory.mktemp("ranks"), (1, PASSES))


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, PASSES])
@pytest.mark.parametrize("name", RANKED)
def test_two_processes_learn_what_one_does_of_the_same_rows(ranks, name, passes):
    """Gradients are exchanged after every pass, as without ``no_sync``."""
    model = RANKED[name]()
    started = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    alone = trained(model, passes, range(RANKS), model)
    biases = [key for key in alone if key.startswith("bias")]
    assert bool(biases) == ("noaux" in name or "biased" in name)
    assert all(alone[key].abs().max() > 0 for key in biases)
    for found in ranks[f"{name} {passes}"]:
        assert found.keys() == alone.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, alone[key], rtol=0, atol=1e-6)
    assert max(float((alone[key] - before).abs().max()) for key, before in started.items()) > 1e-3

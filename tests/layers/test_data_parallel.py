"""Models under torch's data parallelism: parameters, and biases of routers, as in one process over the same rows."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from modelwright.layers.balance import move_biases, steered_routers
from tests.fakes import GROUPED, MOE, NOAUX, tiny_v2, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

RANKS, STEPS, PASSES, ROWS, RATE = 2, 3, 2, 2, 0.01
BALANCED = {"aux_loss_alpha": 0.05, "seq_aux": True, "initializer_range": 0.05}
MODELS = {
    "greedy": lambda: tiny_v2(base=MOE, **BALANCED),
    "grouped": lambda: tiny_v2(base=GROUPED, **BALANCED),
    "noaux_tc": lambda: tiny_v2(base=NOAUX, topk_bias_update_rate=RATE, **BALANCED),
    "llama": lambda: tiny_llama(
        base=HUGGING_FACE,
        moe_config=EXPERTS | {"balance_via_topk_bias": True, "topk_bias_update_rate": RATE},
        initializer_range=0.05,
    ),
}


def rows(step: int, number: int, count: int) -> torch.Tensor:
    return tokens(STEPS * RANKS * PASSES * ROWS, 9)[(step * RANKS * PASSES + number) * ROWS :][: count * ROWS]


def trained(model: Any, passes: int, shares: Any, whole: Any, group: Any = None) -> dict[str, torch.Tensor]:
    """The model's state after some steps of plain gradient descent over the ``shares`` of each, biases moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        for ids in shares(step):
            (whole(input_ids=ids, labels=ids).loss / passes).backward()
        optimizer.step()
        optimizer.zero_grad()
        move_biases(steered_routers(model), RATE, group)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def gloo(store: Any, number: int) -> Any:
    """A rank's group, which no process holds as its default."""
    group = dist.ProcessGroup(store, number, RANKS)
    backend = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), number, RANKS, timedelta(seconds=60))
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    return group


@pytest.mark.parametrize("passes", [1, PASSES], ids=["no accumulation", "accumulation without no_sync"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_two_ranks_are_one_process_over_the_same_rows(build, passes):
    """Two ranks as threads, each with a gloo group of its own making."""
    store = dist.HashStore()

    def rank(number: int) -> dict[str, torch.Tensor]:
        group = gloo(store, number)
        model = models[number]
        whole = DistributedDataParallel(model, process_group=group)

        def shares(step: int) -> list[torch.Tensor]:
            return [rows(step, number * passes + each, 1) for each in range(passes)]

        return trained(model, passes, shares, whole, group)

    models = [build().train() for _ in range(RANKS)]
    with ThreadPoolExecutor(RANKS) as ranks:
        found = list(ranks.map(rank, range(RANKS)))
    model = build().train()
    everything = RANKS * passes
    wanted = trained(model, everything, lambda step: [rows(step, each, 1) for each in range(everything)], model)
    for name, tensor in wanted.items():
        for own in found:
            torch.testing.assert_close(own[name], tensor, atol=1e-6, rtol=1e-5)
    biases = [tensor for name, tensor in wanted.items() if name.endswith("e_score_correction_bias")]
    assert all(bias.abs().max() > 0 for bias in biases)

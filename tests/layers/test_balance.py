"""The bias rule of routers among several ranks: whose loads are summed, and in how many exchanges."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from modelwright.layers import Router
from modelwright.layers.balance import move_biases, steered_routers
from tests.fakes import MOE, NOAUX, tiny_v2, tokens

LOADS = [[[9, 1, 1, 1], [0, 4, 0, 0]], [[1, 1, 1, 9], [0, 0, 4, 4]]]  # by rank and router


def routers_with(loads: list[list[int]]) -> list[Router]:
    made = [Router(8, len(load), 2, method="noaux_tc") for load in loads]
    for router, load in zip(made, loads, strict=True):
        router.load += torch.tensor(load)
    return made


def biases_by_hand(loads: list[list[int]], rate: float) -> list[list[float]]:
    """``rate`` up where an expert had fewer choices than the mean, down where more."""
    means = [sum(load) / len(load) for load in loads]
    return [[rate * ((mean > each) - (mean < each)) for each in load] for load, mean in zip(loads, means, strict=True)]


def test_alone_each_process_counts_its_own():
    for loads in LOADS:
        routers = routers_with(loads)
        move_biases(routers, 0.5, None)
        assert [router.e_score_correction_bias.tolist() for router in routers] == biases_by_hand(loads, 0.5)
        assert all(router.load.sum() == 0 for router in routers)


def test_a_group_sums_the_loads_of_its_ranks():
    """Two ranks as threads, each with a gloo group of its own making."""
    store = dist.HashStore()

    def rank(number: int) -> list[list[float]]:
        group = dist.ProcessGroupGloo(store, number, 2, timedelta(seconds=30))
        routers = routers_with(LOADS[number])
        move_biases(routers, 0.5, group)
        return [router.e_score_correction_bias.tolist() for router in routers]

    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(rank, range(2)))
    summed = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(*LOADS, strict=True)]
    assert found[0] == found[1] == biases_by_hand(summed, 0.5) != biases_by_hand(LOADS[0], 0.5)


@pytest.fixture
def exchanges(monkeypatch):
    """The groups of all exchanges; each doubles its tensor, as a second rank with equal loads would."""
    groups: list[Any] = []

    def exchange(tensor: torch.Tensor, group: Any = None) -> None:
        groups.append(group)
        tensor *= 2

    monkeypatch.setattr(dist, "all_reduce", exchange)
    return groups


@pytest.fixture
def world():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def steered() -> Any:
    model = tiny_v2(base=NOAUX, num_hidden_layers=3, topk_bias_update_rate=0.125).train()
    model(tokens(2, 9))
    return model


def test_without_a_process_group_nothing_is_exchanged(exchanges):
    steered().update_router_bias()
    assert exchanges == []


def test_all_routers_of_a_model_share_one_exchange_with_the_default_group(exchanges, world):
    model = steered()
    assert len(steered_routers(model)) == 2
    model.update_router_bias()
    assert exchanges == [world]


def test_a_group_that_is_given_is_the_one_asked(exchanges, world):
    own = dist.new_group([0])
    model = steered()
    model.update_router_bias(own)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.update_router_bias_with(optimizer, own)
    optimizer.step()
    assert exchanges == [own, own] and own is not world


def test_a_model_without_steered_routers_asks_nobody(exchanges, world):
    tiny_v2(base=MOE).train().update_router_bias()
    assert exchanges == []

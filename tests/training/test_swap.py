"""Activations on the host: which layers come back when, what stays with the graph alone, and what was never moved."""

import gc
import weakref

import pytest
import torch

from modelwright.training import swap as module
from modelwright.training.memory import layers_of
from tests.training.learners import MODELS, learner_of, rows_of, step_batch, weights_of
from tests.training.test_learner import numbers


@pytest.fixture
def told(monkeypatch):
    """The layers whose backward pass asked for something, each with those that were fetched then."""
    found, fetch, take = [], module.Store.fetch, module.Store.take

    def fetching(store):
        found[-1][1].append(store.layer)
        fetch(store)

    def taking(store, *asked):
        if not found or found[-1][0] != store.layer:
            found.append((store.layer, []))
        return take(store, *asked)

    monkeypatch.setattr(module.Store, "fetch", fetching)
    monkeypatch.setattr(module.Store, "take", taking)
    return found


def step(name, micro=4, **parts):
    fields = {"num_hidden_layers": 4} if name != "vl2" else {}
    learner = learner_of(MODELS[name](**fields), **parts)
    result = learner.step_on(1, step_batch(rows_of(learner.model, 4), micro))
    return learner, numbers([result]), weights_of(learner)


@pytest.mark.parametrize(
    ("prefetch", "fetched"),
    [
        (1, [(3, [3, 2]), (2, [1]), (1, [0]), (0, [])]),
        (2, [(3, [3, 2, 1]), (2, [0]), (1, []), (0, [])]),
        (9, [(3, [3, 2, 1, 0]), (2, []), (1, []), (0, [])]),
    ],
)
@pytest.mark.parametrize("name", ["llama", "steered"])
def test_a_layer_is_fetched_so_many_layers_before_it_is_needed(told, name, prefetch, fetched):
    """Anew in every pass of a step, and with the numbers of a run that moves nothing."""
    plain = step(name, micro=2)
    moved = step(name, micro=2, swap={"prefetch": prefetch})
    assert told == 2 * fetched
    assert moved[1] == plain[1] and all(torch.equal(moved[2][key], weight) for key, weight in plain[2].items())


def test_layers_that_are_not_moved_are_passed_over(told):
    step("llama", swap={"layers": [0, 1, 3], "prefetch": 1})
    assert told == [(3, [3, 1]), (1, [0]), (0, [])]


def test_operations_of_a_layer_come_back_with_it(told):
    operations = {"attention": [0, 1, 2], "feed_forward": [1, 2]}
    plain = step("llama")
    moved = step("llama", swap={"operations": operations, "prefetch": 1})
    assert told == [(2, [2, 1]), (1, [0]), (0, [])]
    assert moved[1] == plain[1]


def test_a_layer_that_is_computed_again_keeps_its_input_on_the_host(told):
    plain = step("llama")
    moved = step("llama", recompute="full", swap={"prefetch": 2})
    assert moved[1] == plain[1] and told == [(3, [3, 2, 1]), (2, [0]), (1, []), (0, [])]


def test_blocks_of_a_tower_come_back_after_the_layers_of_the_stack(told):
    learner, found, _ = step("vl2", swap={"prefetch": 1})
    assert len(layers_of(learner.model)) == 4 and found == step("vl2")[1]
    assert told == [(1, [1, 0]), (0, [3]), (3, [2]), (2, [])]


@pytest.mark.parametrize("name", ["llama", "steered", "vl2"])
def test_tensors_lie_as_they_lay(monkeypatch, name):
    """Processors may round products of rows that lie apart, or are repeated, differently from those of dense ones."""
    kept, put, take = {}, module.Store.put, module.Store.take

    def putting(store, tensor, stream):
        place = put(store, tensor, stream)
        kept[store, place] = tensor.detach()
        return place

    taken = []

    def taking(store, place, ahead):
        found, wanted = take(store, place, ahead), kept[store, place]
        assert found.stride() == wanted.stride() and torch.equal(found, wanted)
        taken.append((found.is_contiguous(), found.data_ptr() == wanted.data_ptr()))
        return found

    monkeypatch.setattr(module.Store, "put", putting)
    monkeypatch.setattr(module.Store, "take", taking)
    step(name, swap={})
    assert any(dense for dense, _ in taken) and not any(shared for _, shared in taken)
    assert any(not dense for dense, _ in taken)


def test_what_is_repeated_waits_once():
    store, repeated = module.Store(0, ()), torch.randn(3, 1, 4).expand(3, 5, 4)
    found = store.take(store.put(repeated, None), 1)
    assert torch.equal(found, repeated) and found.stride() == repeated.stride()
    assert found.untyped_storage().nbytes() == 4 * 12


def test_what_is_kept_goes_with_the_graph(monkeypatch):
    """Layer by layer, so that the host never holds two passes."""
    stores, made = [], module.Store.__init__

    def making(store, *given):
        made(store, *given)
        stores.append(weakref.ref(store))

    monkeypatch.setattr(module.Store, "__init__", making)
    step("llama", swap={})
    gc.collect()
    assert len(stores) == 4 and not any(store() for store in stores)


def test_weights_and_numbers_of_places_are_not_moved(monkeypatch):
    put, moved = module.Store.put, []
    monkeypatch.setattr(
        module.Store, "put", lambda store, tensor, stream: moved.append(tensor) or put(store, tensor, stream)
    )
    learner, _, _ = step("steered", swap={})
    own = {parameter.data_ptr() for parameter in learner.model.parameters()}
    assert moved and all(tensor.is_floating_point() and tensor.data_ptr() not in own for tensor in moved)

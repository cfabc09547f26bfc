"""Where few tokens are wanted, the last layer's feed-forward is asked for those alone, and they get the same states."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.engines import engine_of, greedy
from tests.fakes import DENSE, MHA
from tests.hf.every_family import FAMILIES, ids_for
from tests.llamas import EXPERTS, MINDFORMERS, tiny_llama

MODELS: dict[str, Any] = {
    **FAMILIES,
    "dense": lambda: FAMILIES["deepseek_v2"](base=DENSE),
    "heads apart": lambda: FAMILIES["deepseek_v2"](base=MHA),
    "llama, experts": lambda: tiny_llama(base=MINDFORMERS | {"moe_config": EXPERTS}),
    "llama, in two dimensions": lambda: tiny_llama(base=MINDFORMERS | {"rmsnorm_compute_2d": True}),
}
close = torch.testing.assert_close


class Rows:
    """How many tokens the feed-forward of each layer was last given, by the layer."""

    def __init__(self, model: Any):
        self.given: dict[int, int] = {}
        for number, layer in enumerate(model.get_decoder().stack()):
            part = getattr(layer, "mlp", None) or layer.block_sparse_moe
            part.register_forward_pre_hook(lambda _, inputs, number=number: self._see(number, inputs[0]))

    def _see(self, number: int, x: Tensor) -> None:
        self.given[number] = x.flatten(0, -2).shape[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("places", [[8], [8, 2, 2], [], [*range(9)]], ids=str)
def test_states_of_wanted_tokens_are_those_of_a_whole_pass(name, places):
    model = MODELS[name]()
    ids, rows = ids_for(model, 2, 9), Rows(model)
    decoder = model.get_decoder()
    whole = decoder(input_ids=ids, use_cache=False, output_hidden_states=True)
    only = decoder(
        input_ids=ids, use_cache=False, output_hidden_states=True, tokens_to_keep=torch.tensor(places).long()
    )
    close(only.last_hidden_state, whole.last_hidden_state[:, places], atol=1e-5, rtol=1e-5)
    for kept, one in zip(only.hidden_states[:-1], whole.hidden_states[:-1], strict=True):
        assert torch.equal(kept, one)  # what enters each layer is whole
    *before, last = rows.given.values()
    assert before == [18] * len(before) and last == 2 * len(places)


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_wants_of_a_prompt_what_it_draws_from(name):
    """The last layer of the part of a prompt after which nothing is drawn is asked for no token at all."""
    model = MODELS[name]()
    engine, rows = engine_of(model, token_budget=4), Rows(model)
    engine.add_request(ids_for(model, 1, 10)[0].tolist(), greedy(2))
    seen = []
    while engine.has_work:
        engine.step()
        seen.append((rows.given[0], rows.given[len(rows.given) - 1]))
    assert seen == [(4, 0), (4, 0), (2, 1), (1, 1)]


def test_an_engine_wants_every_token_whose_log_probability_is_told():
    model = FAMILIES["llama"]()
    engine, rows = engine_of(model), Rows(model)
    engine.generate([ids_for(model, 1, 10)[0].tolist()], greedy(1, prompt_logprobs=0))
    assert set(rows.given.values()) == {10}

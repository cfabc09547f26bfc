"""The cache of earlier tokens under both of its names, in calls and outputs, on every release of transformers."""

import inspect
import warnings

import pytest
import torch
from transformers import DynamicCache

from modelwright.hf.cache_names import CACHE_NAME, NEW_NAME, OLD_NAME
from tests.hf.every_family import FAMILIES, ids_for

NAMES = [OLD_NAME, NEW_NAME]
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 3}


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture
def ids(model):
    return ids_for(model, 1, 6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pass_takes_and_returns_the_cache_by_either_name(name, model, ids):
    cache = model(ids[:, :4])[name]
    found = model(ids[:, 4:], **{name: cache})
    assert found.cache is found.past_key_values is found["cache"] is found["past_key_values"] is cache
    assert "cache" in found and "past_key_values" in found
    torch.testing.assert_close(found.logits, model(ids).logits[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generate_takes_and_returns_the_cache_by_either_name(name, beams, model, ids):
    """The given cache is the one that is filled, and no name is called an old one."""
    whole = model.generate(ids, num_beams=beams, **GREEDY)
    cache = DynamicCache()
    if beams == 1:  # a search with beams repeats what a cache holds, and must not be handed one of a single row
        model(ids[:, :4], cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.generate(ids, num_beams=beams, return_dict_in_generate=True, **{name: cache}, **GREEDY)
        assert found.cache is found.past_key_values is found["cache"] is found["past_key_values"] is cache
    assert torch.equal(found.sequences, whole)
    assert cache.get_seq_length() == 6 + 2  # the last token is never fed back


def test_both_names_at_once_are_refused(model, ids):
    both = {name: DynamicCache() for name in NAMES}
    for call in (model, model.generate):
        with pytest.raises(TypeError, match="cache and past_key_values are two names of one argument: give one"):
            call(ids, **both)


def test_the_signature_has_the_name_that_transformers_uses(model):
    parameters = inspect.signature(model.forward).parameters
    assert [name for name in NAMES if name in parameters] == [CACHE_NAME]

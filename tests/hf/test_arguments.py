"""What a pass of any family refuses of what it is handed, each time with the name of the argument and its value."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from modelwright.errors import RequestError
from tests.hf.every_family import FAMILIES, ids_for


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture
def ids(model):
    return ids_for(model, 2, 6)


def refused(model, message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RequestError, match=message):
        model(*args, **kwargs)


@pytest.mark.parametrize("token", [-200, 10**6])
def test_a_token_that_is_not_in_the_vocabulary(token, model, ids):
    size, wrong = model.config.get_text_config().vocab_size, ids.clone()
    wrong[1, 3] = token
    refused(model, rf"input_ids must be at least 0 and below vocab_size \({size}\), got {token}", wrong)


def test_ids_of_another_form(model, ids):
    refused(model, r"input_ids must be a tensor of whole numbers, \[batch, tokens\], got list", ids.tolist())
    refused(model, r"input_ids must have the shape \[batch, tokens\], got \[6\]", ids[0])
    refused(model, r"input_ids must be whole numbers \(torch.int64 or torch.int32\), got torch.float32", ids.float())
    refused(model, r"inputs_embeds must have the shape \[batch, tokens, dim\], got \[2, 6\]", inputs_embeds=ids.float())


def test_positions_of_another_shape(model, ids):
    message = r"position_ids has shape \[1, 5\] and must have \[2, 6\] or \[1, 6\]"
    refused(model, message, ids, position_ids=torch.arange(5)[None])
    refused(model, r"position_ids has shape \[3, 6\]", ids, position_ids=torch.arange(6).expand(3, 6))
    one = model(ids, position_ids=torch.arange(6)).logits
    torch.testing.assert_close(one, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_masks_of_another_form(model, ids):
    refused(model, "attention_mask must be a tensor or None, got list", ids, attention_mask=[[1] * 6] * 2)
    causal = torch.ones(1, 1, 6, 6).tril()
    message = r"must be torch.bool \(True where a query may look\) or floating \(added to the scores\), got torch.int64"
    refused(model, message, ids, attention_mask=causal.long())
    message = r"attention_mask has shape \[3, 1, 6, 6\] and must have \[2, 1, 6, 6\]"
    refused(model, message, ids, attention_mask=causal.bool().expand(3, 1, 6, 6))


def test_a_mask_of_four_dimensions_that_hides_the_new_tokens_for_being_too_short(model, ids):
    cache = DynamicCache()
    model(ids[:, :4], cache=cache)
    message = r"attention_mask has shape \[1, 1, 2, 2\] and must have \[2, 1, 2, 6\], or 1 in place of any: 2 rows of 4"
    refused(model, message, ids[:, 4:], attention_mask=torch.ones(1, 1, 2, 2).tril().bool(), cache=cache)
    assert cache.get_seq_length() == 4  # it can be gone on with


def test_caches_that_do_not_fit(model, ids):
    cache = DynamicCache()
    model(ids[:, :4], cache=cache)
    refused(model, "cache holds 2 rows and the pass brings 1: cache.batch_repeat", ids[:1, 4:], cache=cache)
    layers: Any = cache.layers
    pairs = tuple((layer.keys, layer.values) for layer in layers)
    refused(model, r"must be a cache of transformers, got a tuple: DynamicCache\(it\)", ids[:, 4:], cache=pairs)
    found = model(ids[:, 4:], cache=DynamicCache(pairs)).logits
    torch.testing.assert_close(found, model(ids).logits[:, 4:], atol=1e-5, rtol=1e-5)


def test_a_static_cache_without_room(model, ids):
    config = model.config.get_text_config()
    message = r"cache has room for 5 tokens of each row, and 6 are needed \({} past and {} new\)"
    refused(model, message.format(0, 6), ids, cache=StaticCache(config, max_cache_len=5))
    cache = StaticCache(config, max_cache_len=5)
    model(ids[:, :5], cache=cache)
    refused(model, message.format(5, 1), ids[:, 5:], cache=cache)

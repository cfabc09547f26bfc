"""peft's adapters that learn a prompt or a prefix: generate() draws what whole passes say, token by token."""

from functools import partial
from typing import Any

import peft
import pytest
import torch

from modelwright.errors import RequestError
from tests.fakes import tiny_v2, tiny_vl2, tokens
from tests.llamas import HUGGING_FACE, tiny_llama

PLAN: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
LEARNT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
ADAPTERS = {
    "prompt": peft.PromptTuningConfig(**LEARNT),
    "encoded prompt": peft.PromptEncoderConfig(**LEARNT, encoder_hidden_size=8),
    "prefix": peft.PrefixTuningConfig(**LEARNT),
}
CASES = [
    ("llama", "prompt"),
    ("llama", "encoded prompt"),
    ("llama", "prefix"),
    ("deepseek_v2", "prompt"),
    ("deepseek_vl2", "prompt"),
]


pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")


@pytest.fixture
def model(family, adapter):
    base = {"llama": lambda: tiny_llama(base=HUGGING_FACE), "deepseek_v2": tiny_v2, "deepseek_vl2": tiny_vl2}[family]()
    torch.manual_seed(0)
    model = peft.get_peft_model(base, ADAPTERS[adapter]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(3)  # so that what is learnt has a say
    return model


@pytest.mark.parametrize(("family", "adapter"), CASES)
@torch.no_grad()
def test_greedy_is_the_best_token_of_each_whole_pass(model):
    ids = wanted = tokens(2, 6)
    for _ in range(5):
        best = model(input_ids=wanted).logits[:, -1:].argmax(-1)
        wanted = torch.cat((wanted, best), dim=1)
    assert torch.equal(model.generate(input_ids=ids, **PLAN), wanted)
    with model.disable_adapter():
        assert not torch.equal(model.base_model.generate(input_ids=ids, **PLAN), wanted)


@pytest.mark.parametrize(("family", "adapter"), CASES)
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"cache_implementation": "static"}, "of peft needs a cache that grows, got a StaticCache"),
        ({"prompt_lookup_num_tokens": 2}, "of peft generates token by token: leave prompt_lookup_num_tokens"),
        ({"use_cache": False}, "of peft keeps what it learnt in a cache: use_cache must be True"),
    ],
    ids=["static", "drafts", "no cache"],
)
def test_what_peft_prepares_no_inputs_for_is_refused(model, adapter, how, reason):
    """peft's own: a static cache and drafts end in its words or torch's, or drafted tokens are passed over."""
    ids = tokens(1, 3).repeat(1, 2)
    if "use_cache" in how and adapter != "prefix":  # a prompt is put before the tokens of each pass
        assert torch.equal(model.generate(input_ids=ids, **PLAN, **how), model.generate(input_ids=ids, **PLAN))
        return
    with pytest.raises(RequestError, match=reason):
        model.generate(input_ids=ids, **PLAN, **how)
    assert model.base_model.generate(input_ids=ids, **PLAN, **how).shape == (1, 11)  # without what was learnt


@pytest.mark.parametrize("way", ["pass", "generate"])
def test_prefixes_of_heads_are_refused_by_latent_attention(way):
    model = peft.get_peft_model(tiny_v2(), ADAPTERS["prefix"])
    call = model if way == "pass" else partial(model.generate, **PLAN)
    with pytest.raises(RequestError, match=r"holds keys of \d heads, and latent attention .* prefix tuning"):
        call(input_ids=tokens(2, 6))


@pytest.mark.parametrize(("family", "adapter"), CASES[2:])  # of prompts peft drops the positions, which a Llama needs
def test_a_left_padded_row_is_drawn_as_alone(model):
    ids, mask = tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    found = model.generate(input_ids=ids, attention_mask=mask, **PLAN)
    for row, start in ((0, 3), (1, 0)):
        alone = model.generate(input_ids=ids[row : row + 1, start:], **PLAN)
        assert torch.equal(found[row, -5:], alone[0, -5:])

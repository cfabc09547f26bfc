"""Hooks on modules that have transformers' names: what they see, and what they put in its place, is as there."""

from typing import Any

import pytest
import torch
import transformers

from tests.fakes import tiny_v2, tokens
from tests.llamas import HUGGING_FACE, tiny_llama

close = torch.testing.assert_close
PAIRS = {
    "deepseek_v2": (lambda: tiny_v2(num_key_value_heads=4), transformers.DeepseekV2ForCausalLM),
    "llama": (lambda: tiny_llama(base=HUGGING_FACE), transformers.LlamaForCausalLM),
}
SHARED = ("mlp", "self_attn.o_proj", "self_attn.q_proj", "input_layernorm", "post_attention_layernorm", "mlp.down_proj")


@pytest.fixture(params=PAIRS)
def pair(request, tmp_path) -> tuple[Any, Any]:
    """Ours and transformers' with the same weights: of a DeepSeek-V2, a dense layer and one with experts."""
    build, theirs = PAIRS[request.param]
    ours = build()
    ours.save_pretrained(tmp_path)
    return ours, theirs.from_pretrained(tmp_path).eval()


def names(ours: Any, theirs: Any) -> list[str]:
    """Of the modules of all layers that both have."""
    own, other = (dict(model.named_modules()) for model in (ours, theirs))
    found = [f"model.layers.{layer}.{name}" for layer in range(2) for name in SHARED]
    assert all(name in own for name in found if name in other)
    return [name for name in found if name in other]


def seen(model: Any, name: str, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """What a module returns, and the logits where a hook adds to that."""
    kept = []

    def steer(_: Any, __: Any, out: Any) -> Any:
        kept.append(out)
        return out + 0.1

    with model.get_submodule(name).register_forward_hook(steer):
        return model(ids).logits, kept[0]


def test_what_a_hook_sees_and_says_is_as_in_transformers(pair):
    ours, theirs = pair
    ids = tokens(2, 7)
    with torch.no_grad():
        for name in names(ours, theirs):
            for found, wanted in zip(seen(ours, name, ids), seen(theirs, name, ids), strict=True):
                close(found, wanted, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")

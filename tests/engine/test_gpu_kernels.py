"""Engines whose attention and experts are the GPU's kernels, run by Triton's interpreter where there is no GPU."""

import pytest

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.triton import load
from tests.engine.engines import engine_of, expected, greedy, tokens_of
from tests.fakes import tiny_v2, tokens
from tests.llamas import EXPERTS, MINDFORMERS, tiny_llama
from tests.ops.gpu import DEVICE, needs_triton

MODELS = {
    "latent, experts": tiny_v2,
    "grouped, experts": lambda: tiny_llama(base=MINDFORMERS | {"pad_token_id": None, "moe_config": EXPERTS}),
}


@pytest.fixture
def ran(monkeypatch) -> set[str]:
    """Which kernels ran; those of the CPU, which come first, do not."""
    found: set[str] = set()
    monkeypatch.setattr(load, "DEVICES", [DEVICE.type])
    for name in ("serves_decode", "serves_experts", "serves_latent"):
        monkeypatch.setattr(kernels, name, lambda *_: False)
    for name in ("decode", "ragged", "experts"):
        own = getattr(gpu_kernels, name)
        monkeypatch.setattr(gpu_kernels, name, lambda *args, name=name, own=own: found.add(name) or own(*args))
    return found


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("name", ["grouped, experts", "latent, experts"])
def test_greedy_answers_are_those_of_generate(name, ran):
    """A prompt in parts of four tokens, while another decodes."""
    model, prompts = MODELS[name](), [[5], tokens(10).tolist()]
    wanted = [expected(model, prompt, 3).tokens for prompt in prompts]
    model.to(DEVICE)
    results = engine_of(model, token_budget=5, max_batch=2).generate(prompts, greedy(3))
    assert tokens_of(results) == wanted
    assert ran == {"decode", "ragged", "experts"}

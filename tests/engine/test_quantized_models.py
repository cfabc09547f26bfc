"""Models of integers in the engine: the greedy tokens are those of ``generate()``."""

import pytest
import torch

from modelwright.checkpoints.quantized_model import METHODS, quantize_model
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from tests.fakes import tiny_v2
from tests.llamas import HUGGING_FACE, tiny_llama

V2 = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "q_lora_rank": None, "v_head_dim": 16}
MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE, hidden_size=64, intermediate_size=128),
    "deepseek_v2": lambda: tiny_v2(**V2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name, method):
    model = quantize_model(MODELS[name](), method)
    prompts = [list(range(5, 14)), [7, 3, 9]]
    engine = Engine(model, EngineConfig(max_batch=2, page_size=4, num_pages=32, max_context=60))
    results = engine.generate(prompts, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    for prompt, result in zip(prompts, results, strict=True):
        wanted = model.generate(torch.tensor([prompt]), max_new_tokens=8, eos_token_id=None, do_sample=False)
        assert list(result.completions[0].tokens) == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_draws_nothing_reads_a_quantized_head_with_no_rows(method):
    model = quantize_model(MODELS["llama"](), method, keep_head=False)
    prompt = list(range(5, 19))
    engine = Engine(model, EngineConfig(max_batch=2, page_size=4, num_pages=32, max_context=60, token_budget=4))
    (result,) = engine.generate([prompt], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=4, eos_token_id=None, do_sample=False)
    assert list(result.completions[0].tokens) == wanted[0, len(prompt) :].tolist()

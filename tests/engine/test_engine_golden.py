"""The reference numbers of the official DeepSeek code and of MindFormers, computed over pages in parts of prompts."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from tests.engine.engines import TOLERANCE, check_equal, check_idle, engine_of, expected, greedy, record
from tests.parity.test_golden import PICTURES, TEXT, load
from tests.parity.test_mindformers import CASES, GOLDEN, ours
from tests.parity.test_mindformers import TOLERANCE as ROUNDED

TIGHT: dict[str, dict[str, Any]] = {
    "in parts": {"token_budget": 7, "page_size": 4},
    "whole, few pages": {"token_budget": 7, "page_size": 3, "num_pages": 21, "chunk_prefill": False},
}


def rows_of(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """A batch as a prompt for each row."""
    return [{name: part[i : i + 1] for name, part in batch.items()} for i in range(len(batch["input_ids"]))]


def close(found, wanted, within=TOLERANCE):
    torch.testing.assert_close(found, wanted, atol=within, rtol=0)


@pytest.mark.parametrize("limits", TIGHT.values(), ids=list(TIGHT))
@pytest.mark.parametrize("name", [*TEXT, *PICTURES])
def test_numbers_of_the_official_code(name, limits, tmp_path):
    sees = name in PICTURES
    cls, kind = (DeepseekVLV2ForCausalLM, "deepseek_vl_v2") if sees else (DeepseekV2ForCausalLM, "deepseek_v2")
    model, inputs, outputs = load(cls, name, tmp_path, kind)
    inputs.pop("position_ids")
    engine = engine_of(model, **limits)
    recorded, prompts = record(engine), rows_of(inputs)
    new = outputs["greedy"].shape[1] if "greedy" in outputs else 1
    params = greedy(new, prompt_logprobs=0)
    for i, (prompt, result) in enumerate(zip(prompts, engine.generate(prompts, params), strict=True)):
        real = prompt["attention_mask"][0].bool()
        rows = torch.cat(recorded.prompts[result.request])[-int(real.sum()) :]  # the last time they were computed
        close(rows, outputs["logits"][i][real])
        if "greedy" in outputs:
            assert result.completions[0].tokens == tuple(outputs["greedy"][i].tolist())
    check_idle(engine)


@pytest.mark.parametrize("limits", TIGHT.values(), ids=list(TIGHT))
@pytest.mark.parametrize("name", CASES)
def test_numbers_of_mindformers(name, limits):
    """Its rows are as long as its contexts: they are cut, so that tokens can follow. Padding is left out."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        model = LlamaForCausalLM(LlamaConfig(dialect="mindformers", **json.loads(file.metadata()["config"]))).eval()
    weights = {ours(key.removeprefix("weight.")): t for key, t in tensors.items() if key.startswith("weight.")}
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    within = max(TOLERANCE, ROUNDED.get(name, 0))
    engine, new = engine_of(model, **limits), 4
    recorded, prompts = record(engine), tensors["input.input_ids"][:, :20].long()
    params = greedy(new, prompt_logprobs=0, logit_bias={0: -float("inf")})  # no padding is drawn
    for i, (prompt, result) in enumerate(zip(prompts, engine.generate(list(prompts), params), strict=True)):
        real = prompt != model.config.pad_token_id
        assert result.prompt == tuple(prompt[real].tolist())
        rows = torch.cat(recorded.prompts[result.request])[-int(real.sum()) :]
        close(rows, tensors["output.logits"][i, :20][real], within)
        wanted = expected(model, prompt[real], new, suppress_tokens=[0])
        check_equal(result.completions[0].tokens, recorded.drawn[result.request], wanted, within)
    check_idle(engine)

"""Numbers of MindFormers itself (float32, CPU) on its own weights, read here by a table of names of the test's own."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden" / "mindformers"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
NAMES = {
    r"tok_embeddings\.embedding_weight": "embed_tokens.weight",
    r"attention\.w([qkvo])\.": r"self_attn.\1_proj.",
    r"attention\.w_qkv\.": "self_attn.qkv_proj.",
    r"feed_forward\.w1\.": "mlp.gate_proj.",
    r"feed_forward\.w3\.": "mlp.up_proj.",
    r"feed_forward\.w2\.": "mlp.down_proj.",
    r"feed_forward\.w_gate_hidden\.": "mlp.gate_up_proj.",
    r"attention_norm\.": "input_layernorm.",
    r"ffn_norm\.": "post_attention_layernorm.",
    r"norm_out\.": "norm.",
}
TOLERANCE = {"mf_residual_fp16": 2e-3}  # sums rounded to float16 fall to one side or the other


def ours(name: str) -> str:
    for theirs, replacement in NAMES.items():
        name = re.sub(theirs, replacement, name)
    return name


@pytest.fixture(params=CASES)
def case(request):
    """A case's name, our model with its weights, its inputs and its outputs."""
    with safe_open(GOLDEN / f"{request.param}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        model = LlamaForCausalLM(LlamaConfig(dialect="mindformers", **json.loads(file.metadata()["config"]))).eval()
    weights = {ours(key.removeprefix("weight.")): t for key, t in tensors.items() if key.startswith("weight.")}
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    inputs = {key: tensors[f"input.{key}"].long() for key in ("input_ids", "train_input_ids")}
    return request.param, model, inputs, {key: tensors[f"output.{key}"] for key in ("logits", "train_loss")}


def test_all_cases_are_here():
    assert len(CASES) == 11


def test_logits(case):
    name, model, inputs, outputs = case
    with torch.no_grad():
        found = model(inputs["input_ids"]).logits
    torch.testing.assert_close(found, outputs["logits"], atol=TOLERANCE.get(name, 1e-5), rtol=0)


def test_training_loss(case):
    """MindFormers returns the mean over counted tokens, and with calculate_per_token_loss their sum, yet undivided."""
    name, model, inputs, outputs = case
    ids = inputs["train_input_ids"]  # seq_length + 1 wide, shifted inside
    loss = model(ids, labels=ids, num_items_in_batch=1).loss
    torch.testing.assert_close(loss[None], outputs["train_loss"], atol=2e-4 if name in TOLERANCE else 1e-5, rtol=1e-6)


def test_aligned_rows_give_the_same_loss(case):
    _, model, inputs, _ = case
    ids = inputs["train_input_ids"]
    wanted = model(ids, labels=ids).loss
    model.config.input_sliced_sig = True
    torch.testing.assert_close(model(ids[:, :-1], labels=ids[:, 1:]).loss, wanted)

"""Every reference checkpoint of MindFormers, converted: transformers' Llama and ours give MindFormers' own numbers."""

import pytest
import torch
import transformers

from modelwright.checkpoints.convert import convert
from modelwright.families.llama.model import LlamaForCausalLM
from tests.fakes import GOLDEN, golden, write_mindformers

CASES = sorted(path.stem for path in (GOLDEN / "mindformers").glob("*.safetensors"))
TOLERANCE = {"mf_residual_fp16": 4e-3}  # transformers adds residuals in float32, MindFormers here in float16
PAD = 0


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """A case's name, its converted folder, and its config, weights, inputs and outputs."""
    config, weights, inputs, outputs = golden(f"mindformers/{request.param}")
    source = write_mindformers(tmp_path / "mindformers", config, weights, shards=2)
    report = convert(source, tmp_path / "hf")
    assert report.dropped == () and report.shards == 1
    ids = {name: tensor.long() for name, tensor in inputs.items()}
    return request.param, tmp_path / "hf", config, ids, outputs


def read(kind, folder):
    return kind.from_pretrained(folder, dtype="auto").eval()


def test_all_cases_are_here():
    assert len(CASES) == 11


@pytest.mark.parametrize("kind", [transformers.LlamaForCausalLM, LlamaForCausalLM])
def test_logits(case, kind):
    name, folder, _, inputs, outputs = case
    real = inputs["input_ids"] != PAD
    with torch.no_grad():
        found = read(kind, folder)(inputs["input_ids"], attention_mask=real.long()).logits
    torch.testing.assert_close(found[real], outputs["logits"][real], atol=TOLERANCE.get(name, 1e-4), rtol=0)


def test_training_loss_in_transformers(case):
    """MindFormers counts where the token read is no padding; per-token loss is the sum over those, yet undivided."""
    name, folder, config, inputs, outputs = case
    ids = inputs["train_input_ids"]  # seq_length + 1 wide, shifted inside
    labels = ids.clone()
    labels[:, 1:][ids[:, :-1] == PAD] = -100
    with torch.no_grad():
        loss = read(transformers.LlamaForCausalLM, folder)(ids, attention_mask=(ids != PAD).long(), labels=labels).loss
    counted = (labels[:, 1:] != -100).sum() if config.get("calculate_per_token_loss") else 1
    torch.testing.assert_close(loss[None] * counted, outputs["train_loss"], atol=TOLERANCE.get(name, 1e-4), rtol=1e-5)

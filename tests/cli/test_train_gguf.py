"""A run that begins with a GGUF file: planned, shown, trained by LoRA, exported, and read by peft and transformers."""

import json

import peft
import pytest
import torch
import transformers

from modelwright.checkpoints.source import find_folder
from modelwright.families.llama.model import LlamaForCausalLM
from tests.checkpoints.gguf.files import llama_metadata, llama_tensors, write_file

RUN = """
model: {path: tiny.gguf}
tune: {lora: {rank: 4}}
data: {train: rows.jsonl, seq_length: 48, workers: 0}
optimizer: {lr: 1e-2}
batch: {micro: 1, global: 2}
steps: 2
output: out
"""
IDS = torch.randint(3, 265, (2, 24), generator=torch.manual_seed(1))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The run and its file in a folder, and the command typed in another."""
    folder = tmp_path / "runs"
    folder.mkdir()
    (tmp_path / "typed").mkdir()
    monkeypatch.chdir(tmp_path / "typed")
    (folder / "run.yaml").write_text(RUN)
    chat = {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba ab"}]}
    (folder / "rows.jsonl").write_text(4 * f"{json.dumps(chat)}\n")
    write_file(folder / "tiny.gguf", llama_metadata(), llama_tensors("Q4_1"))
    return folder


def test_a_dry_run_and_the_rows_need_only_the_file(run, here):
    ended = run("train", here / "run.yaml", "--dry-run")
    assert ended.code == 0 and "llama, 2 layers" in ended.out
    ended = run("data", "show", here / "run.yaml", "-n", "1")
    assert ended.code == 0 and "⟦ba ab</s>⟧" in ended.out


@pytest.mark.slow
def test_an_adapter_and_the_merged_folder_are_read_by_others(run, here):
    assert run("train", here / "run.yaml").code == 0
    assert run("checkpoint", "export", "out", "merged", "--merge").code == 0
    base = transformers.LlamaForCausalLM.from_pretrained(here, gguf_file="tiny.gguf", dtype=torch.float32)
    before = base(IDS).logits.detach()
    adapted = peft.PeftModel.from_pretrained(base, "out/export").eval()(IDS).logits.detach()
    merged = transformers.LlamaForCausalLM.from_pretrained("merged").eval()
    ours = LlamaForCausalLM.from_pretrained("merged")
    assert merged.dtype == ours.dtype == torch.float32
    close = {"rtol": 0, "atol": 1e-5 * float(before.abs().max())}
    torch.testing.assert_close(adapted, merged(IDS).logits, **close)
    torch.testing.assert_close(ours(IDS).logits, merged(IDS).logits, **close)
    assert float((before - adapted).abs().max()) > 100 * close["atol"]
    wanted = transformers.AutoTokenizer.from_pretrained(find_folder(here / "tiny.gguf", {}))
    assert transformers.AutoTokenizer.from_pretrained("merged")("ab a").input_ids == wanted("ab a").input_ids


def test_a_file_brings_the_tokenizer_of_a_drawn_model(run, here):
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=265
    )
    text = RUN.replace("{path: tiny.gguf}", f"{{config: {json.dumps(config.to_dict())}, processor: tiny.gguf}}")
    (here / "drawn.yaml").write_text(text.replace("tune: {lora: {rank: 4}}\n", ""))
    ended = run("train", here / "drawn.yaml")
    assert ended.code == 0 and "the model is in out/export" in ended.err
    assert transformers.AutoTokenizer.from_pretrained("out/export")("ab a").input_ids

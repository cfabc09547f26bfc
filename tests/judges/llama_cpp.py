"""GGUF files that modelwright writes and reads, judged by llama.cpp itself: the same logits, the same tokens.

    python -m venv JUDGE && JUDGE/bin/pip install cyllama numpy
    python -m tests.judges.llama_cpp JUDGE/bin/python [SMOLLM2.gguf]

Models are tiny and random. llama.cpp computes in float32 where a file holds float32, but for its keys and values, which
it keeps in float16: logits agree to about a thousandth of their size.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from modelwright import load
from modelwright.checkpoints.convert import convert
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from tests.checkpoints.gguf.tokenizers import SPLIT_AS, TEXTS, write_byte_level, write_sentence_piece

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
CLOSE = 4e-3
"""How far logits may be apart, as a part of the largest."""
SIZES = {"vocab_size": 600, "num_hidden_layers": 3, "max_position_embeddings": 256, "initializer_range": 0.1}
LLAMA = SIZES | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
LATENT = SIZES | {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def models() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to be a Llama or a DeepSeek-V2 that both programs have."""
    llamas: dict[str, dict[str, Any]] = {
        "plain": {},
        "tied": {"tie_word_embeddings": True},
        "biased": {"attention_bias": True},
        "theta": {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        **{name: {"rope_parameters": {"rope_theta": 10000.0} | rope} for name, rope in ROPES.items()},
    }
    for name, fields in llamas.items():
        yield f"llama, {name}", lambda fields=fields: LlamaForCausalLM(LlamaConfig(**LLAMA | fields))
    latents: dict[str, dict[str, Any]] = {
        "plain": {},
        "yarn": {"rope_scaling": YARN},
        "dense": {"n_routed_experts": None, "first_k_dense_replace": 3},
        "scaled": {"routed_scaling_factor": 2.5, "norm_topk_prob": True},
        "noaux": {
            "topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        },
        "grouped": {
            "topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
        },
    }  # fmt: skip
    for name, fields in latents.items():
        yield f"deepseek2, {name}", lambda fields=fields: DeepseekV2ForCausalLM(DeepseekV2Config(**LATENT | fields))


def main(python: str, real: str | None = None) -> int:
    """Compare all; print a line for each, and return how many differ."""
    failed = 0
    with TemporaryDirectory() as scratch:
        for number, (name, make) in enumerate(models()):
            failed += not _report(name, *_logits(python, make, Path(scratch) / f"model{number}"))
        for name in (*SPLIT_AS, "sentencepiece"):
            failed += not _report(f"tokens, {name}", *_tokens(python, name, Path(scratch) / f"tokens-{name}"))
        if real is not None:
            failed += not _report("a real model's logits", *_real(python, Path(real), Path(scratch)))
    return failed


def ask(python: str, model: Path, texts: list[str], ids: list[list[int]]) -> dict[str, np.ndarray]:
    """llama.cpp's ``text0``, ... (tokens) and ``logits0``, ... (one row for each of the ids)."""
    asked, answers = model.with_suffix(".json"), model.with_suffix(".npz")
    asked.write_text(json.dumps({"texts": texts, "ids": ids}), "utf-8")
    ran = subprocess.run([python, str(WORKER), str(model), str(asked), str(answers)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"llama.cpp refuses {model.name}:\n{ran.stderr[-3000:]}")
    return dict(np.load(answers))


def _report(what: str, same: bool, detail: str) -> bool:
    print(f"{'same' if same else 'OTHER'}  {what}: {detail}", flush=True)
    return same


def _logits(python: str, make: Callable[[], Any], folder: Path) -> tuple[bool, str]:
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bias"):
                tensor.normal_(std=0.3)
    model.save_pretrained(folder)
    write_byte_level(folder, "gpt-2", vocabulary=SIZES["vocab_size"])
    path = folder / "model.gguf"
    convert(folder, path)
    ids = torch.randint(300, (1, 100), generator=torch.manual_seed(1))
    with torch.no_grad():
        ours = load(path, dtype="float32").model(ids).logits[0].numpy()
        before = model(ids).logits[0].numpy()
    theirs = ask(python, path, [], [ids[0].tolist()])["logits0"][:, : ours.shape[1]]
    apart = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return apart < CLOSE and np.array_equal(ours, before), f"{apart:.1e} apart"


def _tokens(python: str, name: str, folder: Path) -> tuple[bool, str]:
    torch.manual_seed(0)
    folder.mkdir()
    size = write_sentence_piece(folder) if name == "sentencepiece" else write_byte_level(folder, name)
    LlamaForCausalLM(LlamaConfig(**LLAMA | {"vocab_size": size})).save_pretrained(folder)
    path = folder / "model.gguf"
    convert(folder, path)
    given, read = load(folder).tokenizer, load(path).tokenizer
    theirs = ask(python, path, TEXTS, [])
    for i, text in enumerate(TEXTS):
        ours, back, cpp = given(text)["input_ids"], read(text)["input_ids"], theirs[f"text{i}"].tolist()
        if not ours == back == cpp and not (name == "tekken" and "\u0301" in text):  # its expression knows no marks
            return False, f"{text!r} is {ours} here, {back} when read back, {cpp} in llama.cpp"
    return True, f"{len(TEXTS)} texts"


def _real(python: str, path: Path, scratch: Path) -> tuple[bool, str]:
    """The file's numbers in float32, so that llama.cpp rounds no activations."""
    wide = scratch / "wide.gguf"
    convert(path, wide, dtype="float32")
    model, tokenizer = load(path, dtype="float32")
    ids = tokenizer(" ".join(TEXTS))["input_ids"]
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].numpy()
    found = ask(python, wide, TEXTS, [ids])
    apart = float(np.abs(ours - found["logits0"]).max() / np.abs(ours).max())
    same = all(tokenizer(text)["input_ids"] == found[f"text{i}"].tolist() for i, text in enumerate(TEXTS))
    return same and apart < CLOSE, f"{apart:.1e} apart, tokens {'the same' if same else 'others'}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

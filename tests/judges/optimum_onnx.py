"""`export onnx --names optimum`, judged by optimum's own ORTModelForCausalLM: the same logits, the same generation.

    python -m venv JUDGE && JUDGE/bin/pip install optimum-onnx[onnxruntime]
    python -m tests.judges.optimum_onnx JUDGE/bin/python

Models are tiny and random, and computed in float32: Llama of both dialects, its kin, every rotation. Each is asked for
its logits (whole rows, rows padded on the left and on the right, a past continued), and to generate greedily, by
beams and without a cache.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from modelwright.export import OnnxDecoder, export_onnx
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, ROPES, tiny_llama

WORKER = Path(__file__).with_name("optimum_onnx_worker.py")
CLOSE = 1e-4
PROMPT, NEW_TOKENS = 7, 24
LENGTHS = (PROMPT, 3, 5)
"""Of the rows of a padded batch."""
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "no early end": {"min_new_tokens": NEW_TOKENS},
}


def models() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every kind of Llama that optimum's form says, each with what its export is told."""
    yield "MindFormers'", tiny_llama(num_layers=2, qkv_concat=True, pad_token_id=0), {}
    for name, rope in ROPES.items():
        yield f"{name} rotation", _hugging_face(rope_scaling=rope), {}
    plain = _hugging_face(tie_word_embeddings=True, attention_bias=True)
    yield "weights beside the graph", plain, {"external_above": 1000}
    yield "float16", _hugging_face(), {"dtype": "float16"}
    yield "Mistral", _hugging_face(model_type="mistral", architectures=["MistralForCausalLM"]), {}
    yield "Qwen2", _hugging_face(model_type="qwen2", architectures=["Qwen2ForCausalLM"]), {}
    yield "Mixtral", tiny_llama(**MINDFORMERS | {"n_kv_heads": 4, "moe_config": EXPERTS}), {}


def _hugging_face(**fields: Any) -> Any:
    model = tiny_llama(base=HUGGING_FACE, **fields)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bias"):
                tensor.normal_(std=0.3)
    return model


def questions() -> dict[str, Any]:
    """Rows of one length, and a batch of several with its masks."""
    ids = torch.randint(3, 64, (len(LENGTHS), PROMPT), generator=torch.manual_seed(1))
    real = torch.arange(PROMPT) >= PROMPT - torch.tensor(LENGTHS)[:, None]
    masks = {"whole": torch.ones_like(ids), "left": real.long(), "right": real.flip(1).long()}
    return {"ids": ids.tolist(), "masks": {name: mask.tolist() for name, mask in masks.items()}, "ways": WAYS}


def main(python: str) -> int:
    """Compare all; print a line for each, and return how many differ."""
    failed = 0
    with TemporaryDirectory() as scratch:
        made = []
        for number, (name, model, how) in enumerate(models()):
            folder = Path(scratch) / f"model{number}"
            export_onnx(model, folder, names="optimum", draws=4, **how)
            made.append((name, model, how.get("dtype", "float32"), folder))
        _ask(python, Path(scratch), [folder for *_, folder in made])
        for name, model, dtype, folder in made:
            detail = _differs(model, dtype, folder, dict(np.load(folder.with_suffix(".npz"))))
            failed += bool(detail)
            print(f"{'OTHER' if detail else 'same '}  {name}{detail}", flush=True)
    return failed


def _ask(python: str, scratch: Path, folders: list[Path]) -> None:
    """Let optimum write what it makes of each folder into a file beside it."""
    asked = scratch / "asked.json"
    asked.write_text(json.dumps(questions() | {"new_tokens": NEW_TOKENS}), "utf-8")
    ran = subprocess.run([python, str(WORKER), str(asked), *map(str, folders)], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"optimum refuses a folder:\n{ran.stderr[-3000:]}")


def _differs(model: Any, dtype: str, folder: Path, found: dict[str, np.ndarray]) -> str:
    """What of optimum's answers is not ours, in words; empty where all is."""
    said, differences, half = questions(), [], dtype != "float32"
    model = model.to(getattr(torch, dtype))
    ids = torch.tensor(said["ids"])
    masks = {name: torch.tensor(mask) for name, mask in said["masks"].items()}
    for name, mask in masks.items():
        with torch.no_grad():
            ours = model(ids, attention_mask=mask).logits.float().numpy()
        for asked in ("logits", "continued"):
            apart = np.abs(found[f"{asked}, {name}"].astype(np.float32) - ours)[mask.bool().numpy()].max()
            if not apart <= (2e-2 if half else CLOSE):
                differences.append(f"{asked} of {name} rows {apart:.1e} apart")
    # In half precision a greedy token may be a tie: our own reader of the same graph is what generation is held to.
    reader = OnnxDecoder(folder)
    for way, how in WAYS.items():
        for name in ("whole", "left"):
            asked = f"{way}, {name}"
            if half:
                if way != "greedy":
                    continue
                ours = reader.generate(ids.numpy(), NEW_TOKENS, attention_mask=masks[name].numpy())
            else:
                ours = model.generate(
                    ids, attention_mask=masks[name], max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **how
                ).numpy()
            theirs = found[asked]
            if ours.shape != theirs.shape or not _ended_alike(ours, theirs):
                differences.append(f"{asked}: {theirs.tolist()} where we say {ours.tolist()}")
    return "".join(f"; {each}" for each in differences)


def _ended_alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal up to each row's end token: what fills up after it is a setting of its own."""
    for one, other in zip(ours[:, PROMPT:], theirs[:, PROMPT:], strict=True):
        ends = np.flatnonzero(one == HUGGING_FACE["eos_token_id"])
        length = int(ends[0]) + 1 if len(ends) else len(one)
        if not np.array_equal(one[:length], other[:length]):
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Runs in an environment that has optimum-onnx: logits and generation of its ORTModelForCausalLM.

python optimum_onnx_worker.py ASKED.json FOLDER...    (writes FOLDER.npz)
"""

import json
import sys

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main(asked: str, *folders: str) -> None:
    """Answer the questions in a file by the model of each folder."""
    with open(asked, encoding="utf-8") as file:
        questions = json.load(file)
    for folder in folders:
        np.savez(f"{folder}.npz", **answers(folder, questions))


def answers(folder: str, questions: dict) -> dict[str, np.ndarray]:
    """Logits of the ``ids`` under each of the ``masks``, and what is generated in each of the ``ways``."""
    ids = torch.tensor(questions["ids"])
    masks = {name: torch.tensor(mask) for name, mask in questions["masks"].items()}
    model = ORTModelForCausalLM.from_pretrained(folder)
    uncached = ORTModelForCausalLM.from_pretrained(folder, use_cache=False)
    found, half = {}, ids.shape[1] // 2
    for name, mask in masks.items():
        found[f"logits, {name}"] = model(ids, attention_mask=mask).logits.numpy()
        first = model(ids[:, :half], attention_mask=mask[:, :half])
        rest = model(ids[:, half:], attention_mask=mask, past_key_values=first.past_key_values)
        found[f"continued, {name}"] = np.concatenate([first.logits.numpy(), rest.logits.numpy()], axis=1)
    for way, how in questions["ways"].items():
        runner = model if how.get("use_cache", True) else uncached
        for name in ("whole", "left"):
            found[f"{way}, {name}"] = runner.generate(
                ids,
                attention_mask=masks[name],
                max_new_tokens=questions["new_tokens"],
                do_sample=False,
                pad_token_id=0,
                **how,
            ).numpy()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

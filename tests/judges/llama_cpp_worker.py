"""Runs in an environment that has cyllama (llama.cpp's own code): tokens of texts, and logits at every place of ids.

python llama_cpp_worker.py MODEL.gguf ASKED.json ANSWERS.npz
"""

import json
import sys

import numpy as np
from cyllama.llama import llama_cpp as cpp


class Model(cpp.LlamaModel):
    """With the number that a context asks for and cyllama 0.2 forgot."""

    @property
    def n_vocab(self):
        return self.get_vocab().n_vocab


def main(path: str, asked: str, answers: str) -> None:
    """Answer the ``texts`` and the ``ids`` (lists of tokens) of a JSON file."""
    with open(asked, encoding="utf-8") as file:
        questions = json.load(file)
    settings = cpp.LlamaModelParams()
    settings.use_mmap = False
    model = Model(path_model=path, params=settings)
    vocabulary = model.get_vocab()
    found = {f"text{i}": np.array(vocabulary.tokenize(t, True, True), int) for i, t in enumerate(questions["texts"])}
    how = cpp.LlamaContextParams()
    how.n_ctx = how.n_batch = 2048
    for i, ids in enumerate(questions["ids"]):
        context = cpp.LlamaContext(model=model, params=how)
        batch = cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, 0, True)
        context.decode(batch)
        found[f"logits{i}"] = np.array([context.get_logits_ith(j) for j in range(len(ids))], np.float32)
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

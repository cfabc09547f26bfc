"""vLLM as a contestant, in process and with its defaults: it compiles, and finds prompts again that it has read."""

import importlib
import os
import time
from typing import Any

from benchmarks.engine_peers.protocol import serve

SETTINGS = {"max_model_len": 8192, "max_num_seqs": 32, "skip_tokenizer_init": True, "dtype": "bfloat16", "seed": 0}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VllmWorker:
    """The requests that :mod:`benchmarks.engine` makes."""

    def load(self, folder: str, model: str, threads: int) -> dict[str, Any]:
        """From a checkpoint to the first token."""
        os.environ.update(ENVIRONMENT)
        if threads < (os.cpu_count() or 1):
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        self._vllm = importlib.import_module("vllm")
        self._engine = self._vllm.LLM(folder, **SETTINGS).llm_engine
        self._asked = 0
        self.prefill([list(range(3, 19))])
        return {"versions": {"vllm": self._vllm.__version__}}

    def prefill(self, prompts: list[list[int]]) -> dict[str, Any]:
        """From the request to its first token."""
        start = time.perf_counter()
        self._add(prompts, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - start}

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """At least ``steps`` steps once all prompts are read."""
        names = self._add(prompts, steps + 64)
        drawn = dict.fromkeys(names, 0)
        while not all(drawn.values()):
            self._step(drawn)
        before = sum(drawn.values())
        start = time.perf_counter()
        while sum(drawn.values()) < before + steps * len(names):
            self._step(drawn)
        taken = time.perf_counter() - start
        tokens = sum(drawn.values()) - before
        self._engine.abort_request(names)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return {"tokens": tokens, "seconds": taken}

    def _add(self, prompts: list[list[int]], tokens: int) -> list[str]:
        kinds = {"temperature": 0, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "detokenize": False}
        names = []
        for prompt in prompts:
            self._asked += 1
            names.append(f"request-{self._asked}")
            self._engine.add_request(names[-1], {"prompt_token_ids": prompt}, self._vllm.SamplingParams(**kinds))
        return names

    def _step(self, drawn: dict[str, int]) -> None:
        for output in self._engine.step():
            drawn[output.request_id] = len(output.outputs[0].token_ids)


if __name__ == "__main__":
    serve(VllmWorker())

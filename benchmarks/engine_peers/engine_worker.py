"""Our engine as a contestant, with the cache that the cases need; requests go step by step."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import FAMILIES, picture_batch, seeded_prompts
from benchmarks.engine_peers.protocol import serve
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams

SETTINGS = EngineConfig(max_batch=32, max_context=8192, num_pages=1600)


class EngineWorker:
    """The requests that :mod:`benchmarks.engine` makes; prompts seen before are found in the cache."""

    def load(self, folder: str, model: str, threads: int, dtype: str = "bfloat16") -> dict[str, Any]:
        """From a checkpoint to the first token; ``dtype`` is that of floating weights."""
        torch.set_num_threads(threads)
        self._model = FAMILIES[model][1].from_pretrained(Path(folder), dtype=getattr(torch, dtype)).eval()
        self._engine = Engine(self._model, SETTINGS)
        self.prefill([list(range(3, 19))])
        return {"versions": {"torch": torch.__version__}}

    def prefill(self, prompts: list[Any]) -> dict[str, Any]:
        """From the request to its first token."""
        start = time.perf_counter()
        results = self._engine.generate(prompts, _greedy(1))
        taken = time.perf_counter() - start
        return {"tokens": sum(len(result.prompt) for result in results), "seconds": taken}

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """``steps`` steps once all prompts are read."""
        engine = self._engine
        names = [engine.add_request(prompt, _greedy(steps + 64)) for prompt in prompts]
        reading = set(names)
        while reading:
            reading -= {update.request for update in engine.step()}
        start = time.perf_counter()
        tokens = sum(len(update.tokens) for _ in range(steps) for update in engine.step())
        taken = time.perf_counter() - start
        for name in names:
            engine.abort(name)
        return {"tokens": tokens, "seconds": taken}

    def picture(self, seed: int) -> dict[str, Any]:
        """From a prompt that shows a new picture to its first token."""
        return self.prefill([picture_batch(self._model.config, seed)])

    def prefixes(self, shared: int, own: int, requests: int) -> dict[str, Any]:
        """Prompt tokens computed and seconds for requests that begin alike, with and without finding pages again."""
        (beginning,) = seeded_prompts((shared,), seed=1)
        prompts = [beginning + rest for rest in seeded_prompts((own,) * requests, seed=2)]
        kinds = {"reused": True, "computed": False}
        return {name: _prefill_work(self._model, reuse, prompts) for name, reuse in kinds.items()}


def _prefill_work(model: Any, reuse: bool, prompts: list[list[int]]) -> dict[str, float]:
    """What a fresh engine computes until each prompt has its first token, which is also its last."""
    engine = Engine(model, EngineConfig(max_batch=32, max_context=8192, num_pages=2600, reuse_prefixes=reuse))
    for prompt in prompts:
        engine.add_request(prompt, _greedy(1))
    start, tokens = time.perf_counter(), 0
    while engine.has_work:
        engine.step()
        tokens += engine.statistics.step.tokens if engine.statistics else 0
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


if __name__ == "__main__":
    serve(EngineWorker())

"""OpenVINO GenAI as a contestant: its continuous batching over a graph that optimum-intel exports."""

import importlib
import time
from typing import Any

from benchmarks.engine_peers.protocol import serve

CACHE_GB = 2


class OpenvinoWorker:
    """The requests that :mod:`benchmarks.engine` makes."""

    def prepare(self, checkpoint: str, out: str) -> None:
        """Write the graph, weights as they are."""
        optimum = importlib.import_module("optimum.intel")
        exported = optimum.OVModelForCausalLM.from_pretrained(
            checkpoint, export=True, compile=False, load_in_8bit=False
        )
        exported.save_pretrained(out)

    def load(self, folder: str, model: str, threads: int) -> dict[str, Any]:
        """From the exported graph to the first token."""
        self._openvino, self._genai = importlib.import_module("openvino"), importlib.import_module("openvino_genai")
        settings = self._genai.SchedulerConfig()
        settings.cache_size, settings.max_num_seqs = CACHE_GB, 32
        settings.max_num_batched_tokens, settings.enable_prefix_caching = 2048, True
        kinds = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipe, self._asked = self._genai.ContinuousBatchingPipeline(folder, settings, "CPU", kinds), 0
        self.prefill([list(range(3, 19))])
        return {"versions": {"openvino-genai": self._genai.__version__}}

    def prefill(self, prompts: list[list[int]]) -> dict[str, Any]:
        """From the request to its first token."""
        start = time.perf_counter()
        self._read(self._add(prompts, 1))
        return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - start}

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """At least ``steps`` steps once all prompts are read."""
        handles = self._add(prompts, steps + 64)
        drawn = self._read(handles)
        before = sum(drawn)
        start = time.perf_counter()
        while sum(drawn) < before + steps * len(handles):
            self._step(handles, drawn)
        taken = time.perf_counter() - start
        for handle in handles:
            handle.cancel()
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        return {"tokens": sum(drawn) - before, "seconds": taken}

    def _add(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        numpy, limits = importlib.import_module("numpy"), self._genai.GenerationConfig()
        limits.max_new_tokens = limits.min_new_tokens = tokens
        limits.ignore_eos, limits.do_sample = True, False
        handles = []
        for prompt in prompts:
            self._asked += 1
            ids = self._openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
            handles.append(self._pipe.add_request(self._asked, ids, limits))
        return handles

    def _read(self, handles: list[Any]) -> list[int]:
        """Step until each has drawn; returns how many tokens each drew."""
        drawn = [0] * len(handles)
        while not all(drawn):
            self._step(handles, drawn)
        return drawn

    def _step(self, handles: list[Any], drawn: list[int]) -> None:
        self._pipe.step()
        for place, handle in enumerate(handles):
            if handle.can_read():
                drawn[place] += sum(len(output.generated_ids) for output in handle.read().values())


if __name__ == "__main__":
    serve(OpenvinoWorker())

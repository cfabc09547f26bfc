"""llama.cpp as a contestant, through llama-cpp-python's plain bindings; it keeps the prompts that it has read."""

import importlib
import time
from pathlib import Path
from typing import Any

from benchmarks.engine_peers.gguf import write_gguf
from benchmarks.engine_peers.protocol import serve

READ_AT_ONCE = 2048
ROOM = 256
"""Tokens that a sequence may have beyond its prompt."""
FILE_TYPES = {"Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}


class LlamaWorker:
    """The requests that :mod:`benchmarks.engine` makes."""

    def prepare(self, checkpoint: str, out: str) -> None:
        """Write the three files, the quantized ones by llama.cpp itself."""
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_gguf(Path(checkpoint), folder / "bf16.gguf")
        api = importlib.import_module("llama_cpp")
        for kind, name in FILE_TYPES.items():
            settings = api.llama_model_quantize_default_params()
            settings.ftype = getattr(api, name)
            source, target = str(folder / "bf16.gguf").encode(), str(folder / f"{kind}.gguf").encode()
            if api.llama_model_quantize(source, target, settings):
                raise RuntimeError(f"llama.cpp did not write {kind}")

    def load(self, folder: str, model: str, threads: int, kind: str = "bf16") -> dict[str, Any]:
        """From one of the files to the first token."""
        self._api = api = importlib.import_module("llama_cpp")
        self._numpy, self._threads = importlib.import_module("numpy"), threads
        api.llama_backend_init()
        path = str(Path(folder) / f"{kind}.gguf").encode()
        self._model = api.llama_model_load_from_file(path, api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {kind}.gguf")
        self._words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context, self._size, self._kept = None, (0, 0), []
        self.prefill([list(range(3, 19))])
        return {"versions": {"llama-cpp-python": api.__version__}}

    def prefill(self, prompts: list[list[int]]) -> dict[str, Any]:
        """From the request to its first token."""
        self._open(prompts)
        start = time.perf_counter()
        self._read(prompts)
        return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - start}

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """``steps`` steps of all sequences, the prompts' last tokens first."""
        if prompts != self._kept:
            self._open(prompts)
            self._read([prompt[:-1] for prompt in prompts])
            self._kept = prompts
        for place, prompt in enumerate(prompts):
            self._api.llama_memory_seq_rm(self._memory, place, len(prompt) - 1, -1)
        ends, tokens = [len(prompt) - 1 for prompt in prompts], [prompt[-1] for prompt in prompts]
        start = time.perf_counter()
        for step in range(steps):
            rows = [
                (token, end + step, place, True) for place, (token, end) in enumerate(zip(tokens, ends, strict=True))
            ]
            tokens = self._compute(rows)
        return {"tokens": steps * len(prompts), "seconds": time.perf_counter() - start}

    def _open(self, prompts: list[list[int]]) -> None:
        """An empty context for so many sequences, each with room for the longest."""
        api, size = self._api, (len(prompts), -(-(max(map(len, prompts)) + ROOM) // 256) * 256)
        self._kept = []
        if size != self._size:
            if self._context:
                api.llama_free(self._context)
            settings = api.llama_context_default_params()
            settings.n_seq_max, settings.n_ctx, settings.n_batch = size[0], size[0] * size[1], READ_AT_ONCE
            settings.n_threads = settings.n_threads_batch = self._threads
            self._context, self._size = api.llama_init_from_model(self._model, settings), size
            self._memory = api.llama_get_memory(self._context)
        api.llama_memory_clear(self._memory, True)

    def _read(self, prompts: list[list[int]]) -> None:
        """One prompt after the other, in parts; the last token of each draws."""
        for place, prompt in enumerate(prompts):
            rows = [(token, at, place, at == len(prompt) - 1) for at, token in enumerate(prompt)]
            for begin in range(0, len(rows), READ_AT_ONCE):
                self._compute(rows[begin : begin + READ_AT_ONCE])

    def _compute(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (token, position, sequence, draws); returns the likeliest token of each that draws."""
        api, batch = self._api, self._api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for place, (token, position, sequence, draws) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, draws
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        failed = api.llama_decode(self._context, batch)
        api.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode says {failed} for {len(rows)} tokens")
        drawing = [place for place, row in enumerate(rows) if row[3]]
        scores = (api.llama_get_logits_ith(self._context, place) for place in drawing)
        return [int(self._numpy.ctypeslib.as_array(row, (self._words,)).argmax()) for row in scores]


if __name__ == "__main__":
    serve(LlamaWorker())

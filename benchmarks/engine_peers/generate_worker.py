"""``generate()`` as a contestant: transformers' own classes with sdpa, or ours; the cache of what was read is kept."""

import copy
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.engine_cases import FAMILIES, picture_batch
from benchmarks.engine_peers.protocol import serve
from modelwright.hf.cache_names import CACHE_NAME, of_cache

THEIRS = {"L": "LlamaForCausalLM", "D": "DeepseekV2ForCausalLM"}


class GenerateWorker:
    """The requests that :mod:`benchmarks.engine` makes."""

    def load(self, folder: str, model: str, threads: int, ours: bool = False) -> dict[str, Any]:
        """From a checkpoint to the first token."""
        torch.set_num_threads(threads)
        kinds: dict[str, Any] = {"dtype": torch.bfloat16}
        if ours:
            family = FAMILIES[model][1]
        else:
            family, kinds["attn_implementation"] = getattr(transformers, THEIRS[model]), "sdpa"
        self._model = family.from_pretrained(Path(folder), **kinds).eval()
        self._kept: tuple[list[list[int]], Any] | None = None
        self.prefill([list(range(3, 19))])
        return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}

    def prefill(self, prompts: list[list[int]]) -> dict[str, Any]:
        """A run of one token."""
        batch = _padded(prompts)
        start = time.perf_counter()
        self._generate(batch, 1)
        return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - start}

    def decode(self, prompts: list[list[int]], steps: int) -> dict[str, Any]:
        """``steps`` further tokens, from the scores of the first to those of the last."""
        batch = _padded(prompts)
        if self._kept is None or self._kept[0] != prompts:
            self._kept = None  # let go of the last before there is another
            but_the_last = {name: part[:, :-1] for name, part in batch.items()}
            self._kept = prompts, self._generate(but_the_last, 1)[CACHE_NAME]
        clock = Clock()
        self._generate(batch | of_cache(copy.deepcopy(self._kept[1])), steps + 1, clock)
        return {"tokens": steps * len(prompts), "seconds": clock.times[-1] - clock.times[0]}

    def picture(self, seed: int) -> dict[str, Any]:
        """From a prompt that shows a new picture to its first token."""
        batch = picture_batch(self._model.config, seed)
        start = time.perf_counter()
        self._generate(batch | {"attention_mask": torch.ones_like(batch["input_ids"])}, 1)
        return {"tokens": batch["input_ids"].numel(), "seconds": time.perf_counter() - start}

    @torch.no_grad()
    def _generate(self, batch: dict[str, Any], new: int, clock: "Clock | None" = None) -> Any:
        limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        watching = {} if clock is None else {"logits_processor": transformers.LogitsProcessorList([clock])}
        return self._model.generate(**batch, **limits, **watching, return_dict_in_generate=True)


class Clock(transformers.LogitsProcessor):
    """Notes when the scores of each token came, and leaves them as they are."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        return scores


def _padded(prompts: list[list[int]]) -> dict[str, Any]:
    """One batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


if __name__ == "__main__":
    serve(GenerateWorker())

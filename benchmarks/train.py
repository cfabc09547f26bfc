"""Training steps of ours beside transformers' `Trainer` and a plain loop over its models: real tokens a second.

    python -m benchmarks.train [--workloads llama moe chats saves] [--dtypes float32 bfloat16] [--threads 1]

Each contestant has a process of its own. With one thread tokens are counted by CPU second, which other programs on the
machine disturb little; with several by wall clock. All begin with the same weights and see the same rows, and their
first losses must agree. Each turn of one is followed by a turn of the others, the order changing from round to round;
medians are told.

- ``llama``: 20.5 million parameters, rows of 256 tokens, two a step.
- ``moe``: DeepSeek-V2's kind, 23 million parameters, 64 experts of which 6 compute; transformers multiplies by
  ``grouped_mm``.
- ``chats``: rows of unequal length, eight of them in a padded batch of `Trainer`, and packed by ours.
- ``saves``: what a checkpoint written beside the steps of ``llama`` costs, in steps, and how long a resume takes.

Each result is kept beside its bar, the ratio that it is to reach. Results of a machine are added to those in the file.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.train_saves import measure_saves
from modelwright import DeepseekV2Config, DeepseekV2ForCausalLM, LlamaConfig, LlamaForCausalLM
from modelwright.configs.run import RunConfig
from modelwright.data.documents import StepBatch
from modelwright.data.examples import Place
from modelwright.training.trainer import Trainer

SPAWN = multiprocessing.get_context("spawn")
Step = Callable[[int], float]
"""Takes the optimizer step of this number; its loss."""
LLAMA: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
MOE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "moe_intermediate_size": 120,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 1024,
    "aux_loss_alpha": 0.0,
}
GROUPED: dict[str, Any] = MOE | {"experts_implementation": "grouped_mm"}
OPTIMIZER: dict[str, Any] = {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
ROW, ROWS, LONGEST, CHATS = 256, 2, 512, 8
BARS: dict[str, tuple[str, float]] = {
    "llama float32": ("ours / trainer", 1.05),
    "llama bfloat16": ("ours / trainer", 1.4),
    "moe float32": ("ours / plain", 1.2),
    "moe bfloat16": ("ours / plain", 1.2),
    "chats float32": ("ours / trainer", 2.0),
    "chats bfloat16": ("ours / trainer", 2.0),
}
"""The ratio that each workload is to reach, and of what."""
MOST_STALL = 1.0
"""How many steps a checkpoint may cost."""


def rows_of(workload: str, step: int) -> list[Tensor]:
    """The rows of a step, of equal length or, as chats are, mostly short and seldom long."""
    generator = torch.Generator().manual_seed(step)
    lengths = [ROW] * ROWS
    if workload == "chats":
        drawn = torch.exp(torch.randn(CHATS, generator=generator) * 0.9 + 4.2)
        lengths = drawn.clamp(16, LONGEST).long().tolist()
    return [torch.randint(3, 8192, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Rows beside each other, filled up on the right."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(rows), batch_first=True)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def packed(rows: Sequence[Tensor]) -> StepBatch:
    """Rows as documents of one row."""
    micro = {
        "input_ids": torch.cat(list(rows))[None],
        "labels": torch.cat([torch.cat([torch.tensor([-100]), row[1:]]) for row in rows])[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "seq_idx": torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)])[None],
    }
    return batch_of(micro, rows)


def batch_of(micro: dict[str, Tensor], rows: Sequence[Tensor]) -> StepBatch:
    """What our trainer takes a step on."""
    counted = sum(len(row) - 1 for row in rows)
    places = tuple(Place("rows", number) for number in range(len(rows)))
    tokens = sum(map(len, rows))
    return StepBatch((micro,), counted, tokens, len(rows), places, 0)


def our_trainer(model: Any, dtype: str) -> Trainer:
    """Our trainer, which is given its steps."""
    run = {
        "model": {"path": "in memory", "dtype": "float32"},
        "data": {"train": [{"path": "in memory"}], "seq_length": 4096},
        "batch": {"micro": 1, "global": 1},
        "optimizer": {"name": "adamw", **OPTIMIZER},
        "schedule": {"name": "constant", "warmup": 0},
        "precision": {"compute": dtype},
        "steps": 10**6,
        "output": tempfile.mkdtemp(),
    }
    return Trainer(RunConfig.of(run), model=model, batches=iter(()))


def ours(model: Any, workload: str, dtype: str) -> Step:
    """Our trainer, step by step."""
    trainer = our_trainer(model, dtype)

    def step(number: int) -> float:
        rows = rows_of(workload, number)
        batch = packed(rows) if workload == "chats" else batch_of(padded(rows), rows)
        return float(trainer.step_on(batch).loss)

    return step


def plain(model: Any, workload: str, dtype: str) -> Step:
    """A loop as people write it."""
    model.train()
    matrices = [each for each in model.parameters() if each.dim() > 1]
    rest = [each for each in model.parameters() if each.dim() <= 1]
    how = {"lr": OPTIMIZER["lr"], "betas": tuple(OPTIMIZER["betas"]), "eps": OPTIMIZER["eps"]}
    groups = [{"params": matrices, "weight_decay": OPTIMIZER["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True, **how)
    casts = dtype != "float32"

    def step(number: int) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            loss = model(**padded(rows_of(workload, number)), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


class HfTrainer:
    """transformers' `Trainer` over the rows of as many steps as are asked for."""

    def __init__(self, model: Any, workload: str, dtype: str):
        self._model, self._workload, self._dtype = model, workload, dtype

    def run(self, first: int, steps: int) -> tuple[float, float, float]:
        """The loss of the first step, and CPU and wall seconds of all but one before them, which sets up."""
        rows = [row for number in range(first - 1, first + steps) for row in rows_of(self._workload, number)]
        timing = _Timing()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=CHATS if self._workload == "chats" else ROWS,
                max_steps=steps + 1,
                learning_rate=OPTIMIZER["lr"],
                adam_beta2=OPTIMIZER["betas"][1],
                weight_decay=OPTIMIZER["weight_decay"],
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                bf16=self._dtype != "float32",
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = _InOrder(
                model=self._model,
                args=arguments,
                train_dataset=[{"ids": row} for row in rows],
                data_collator=lambda batch: padded([each["ids"] for each in batch]),
                callbacks=[timing],
            )
            trainer.train()
        return float("nan"), *timing.taken()


class _InOrder(transformers.Trainer):
    """Takes rows as they come."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _Timing(transformers.TrainerCallback):
    def __init__(self) -> None:
        self._looks: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._looks.append((time.process_time(), time.perf_counter()))

    def taken(self) -> tuple[float, float]:
        """CPU and wall seconds from the end of the first step to the end of the last."""
        (cpu, wall), (cpu_end, wall_end) = self._looks[0], self._looks[-1]
        return cpu_end - cpu, wall_end - wall


class Steps:
    """A contestant that takes one step at a time."""

    def __init__(self, step: Step):
        self._step = step

    def run(self, first: int, steps: int) -> tuple[float, float, float]:
        """As :meth:`HfTrainer.run`."""
        loss = self._step(first - 1)
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(first, first + steps):
            self._step(number)
        return loss, time.process_time() - cpu, time.perf_counter() - wall


def contestant(who: str, workload: str, dtype: str) -> Any:
    """One of those who take part, on a model of the same weights as all others."""
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    moe = workload == "moe"
    own: Any = DeepseekV2ForCausalLM(DeepseekV2Config(**MOE)) if moe else LlamaForCausalLM(LlamaConfig(**LLAMA))
    if who == "ours":
        return Steps(ours(own, workload, dtype))
    if moe:
        other: Any = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**GROUPED))
    else:
        other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    other.load_state_dict(own.state_dict())
    return Steps(plain(other, workload, dtype)) if who == "plain" else HfTrainer(other, workload, dtype)


def turns(pipe: Any, threads: int, *what: str) -> None:
    """Be a contestant in a process of its own: steps are asked for and told over ``pipe``."""
    torch.set_num_threads(threads)
    taking = contestant(*what)
    for asked in iter(pipe.recv, None):
        pipe.send(taking.run(*asked))


class Apart:
    """A contestant whose process is its own, so that what it asks of the allocator is asked for nobody else."""

    def __init__(self, *what: str):
        self._pipe, other = SPAWN.Pipe()
        SPAWN.Process(target=turns, args=(other, torch.get_num_threads(), *what), daemon=True).start()
        other.close()  # so that a process that ended is an error here, and nobody waits for it

    def run(self, first: int, steps: int) -> tuple[float, float, float]:
        """As :meth:`HfTrainer.run`."""
        self._pipe.send((first, steps))
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)


def measure(workload: str, dtype: str, rounds: int, steps: int, by_cpu: bool) -> dict[str, Any]:
    """Medians of tokens a second, and ours against each of the others."""
    field = {who: Apart(who, workload, dtype) for who in ("ours", "plain", "trainer")}
    speeds: dict[str, list[float]] = {name: [] for name in field}
    for turn in range(rounds + 1):
        first = 1 + turn * (steps + 1)
        tokens = sum(len(row) for number in range(first, first + steps) for row in rows_of(workload, number))
        losses = {}
        for name in list(field)[:: -1 if turn % 2 else 1]:
            losses[name], cpu, wall = field[name].run(first, steps)
            if turn:
                speeds[name].append(tokens / (cpu if by_cpu else wall))
        if not turn and abs(losses["ours"] - losses["plain"]) > (1e-4 if dtype == "float32" else 2e-2):
            raise SystemExit(f"{workload}: the first losses differ: {losses}")
    for each in field.values():
        each.close()
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    ratios = {f"ours / {name}": medians["ours"] / medians[name] for name in field if name != "ours"}
    return {"tokens_per_second": medians, "ratios": ratios, "turns": speeds}


def saves(rounds: int, steps: int) -> dict[str, Any]:
    """What a checkpoint costs, of a Llama in float32."""

    def build() -> Trainer:
        torch.manual_seed(0)
        return our_trainer(LlamaForCausalLM(LlamaConfig(**LLAMA)), "float32")

    def batch(number: int) -> StepBatch:
        rows = rows_of("llama", number)
        return batch_of(padded(rows), rows)

    return measure_saves(build, batch, rounds, steps) | {"bar": MOST_STALL}


def results(asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What is found, workload by workload, and a line on it."""
    how = {"rounds": asked.rounds, "steps": asked.steps, "threads": asked.threads}
    for workload in asked.workloads:
        if workload == "saves":
            result = saves(asked.rounds, asked.steps)
            told = "  ".join(f"{what} {seconds:.3f} s" for what, seconds in result["seconds"].items())
            yield "saves", how | result, f"{told}; stall of {result['stall']:.2f} steps, at most {MOST_STALL:g} wanted"
            continue
        for dtype in asked.dtypes:
            name = f"{workload} {dtype}"
            result = measure(workload, dtype, asked.rounds, asked.steps, asked.threads == 1)
            told = "  ".join(f"{who} {speed:.0f}" for who, speed in result["tokens_per_second"].items())
            ratios = ", ".join(f"{what} {ratio:.2f}" for what, ratio in result["ratios"].items())
            of, bar = BARS[name]
            yield name, how | result | {"bar": {of: bar}}, f"{told}; {ratios}; {of} of {bar:g} wanted"


def machine() -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bf16_products": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    kinds = ["llama", "moe", "chats", "saves"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each contestant in a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = json.loads(asked.out.read_text("utf-8")) if asked.out.exists() else {}
    found = before if before.get("machine") == machine() else {"machine": machine()}
    for name, result, told in results(asked):
        found[name] = result
        print(f"{name}: {told}", flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

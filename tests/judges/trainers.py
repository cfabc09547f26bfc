"""Our Trainer, transformers' `Trainer` and TRL's `SFTTrainer` on copies of one model and the same rows: 20 losses each.

    python -m venv JUDGE && JUDGE/bin/pip install trl pillow
    PYTHONPATH=src:. JUDGE/bin/python -m tests.judges.trainers

Models are tiny and random, and computed in float32: a Llama, a DeepSeek-V2 without and with experts, and one whose
experts are balanced. Rows are taken in their order, three a step, padded on the right; ours are read from a file by the
run's own reader, the others' are the same tokens. Losses are to be 1e-5 apart at most, at every step, and every weight
that was learned is compared with that of transformers' `Trainer`.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from trl import SFTConfig, SFTTrainer

from modelwright.configs.run import RunConfig
from modelwright.training.trainer import Trainer
from tests.fakes import DENSE, GROUPED, MOE, tiny_v2
from tests.llamas import HUGGING_FACE, tiny_llama

CLOSE, STEPS, ROWS, VOCABULARY, RATE = 1e-5, 20, 3, 64, 2e-3


def documents(longest: int) -> list[list[int]]:
    """The tokens of each row: of 3 to ``longest`` of them, or all of 8 where that is the longest."""
    draw = torch.Generator().manual_seed(0)
    shortest = 8 if longest == 8 else 3
    lengths = torch.randint(shortest, longest + 1, (STEPS * ROWS,), generator=draw).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One that names the special tokens; the documents are tokens already."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w2"
    )


def by_ours(model: Any, rows: list[list[int]], folder: Path) -> list[float]:
    """The losses of our Trainer, whose rows come from a file."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    run = {
        "model": {"path": "in memory"},
        "data": {"train": ["rows.jsonl"], "seq_length": 64, "pack": "none", "shuffle": False, "workers": 0},
        "batch": {"micro": ROWS, "global": ROWS},
        "optimizer": {"lr": RATE, "betas": [0.9, 0.999], "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "steps": STEPS,
        "output": str(folder / "ours"),
    }
    trainer = Trainer(RunConfig.of(run), model=model, processor=tokenizer(), base=folder)
    found = [float(trainer.step_on(next(trainer.batches)).loss) for _ in range(STEPS)]
    trainer.batches.close()
    return found


def by_transformers(model: Any, rows: list[list[int]], folder: Path) -> list[float]:
    """The losses of transformers' `Trainer`."""
    collate = transformers.DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    plan = transformers.TrainingArguments(str(folder / "theirs"), **_plan())
    return _losses(_in_order(transformers.Trainer)(model, plan, train_dataset=_dataset(rows), data_collator=collate))


def by_trl(model: Any, rows: list[list[int]], folder: Path) -> list[float]:
    """The losses of TRL's `SFTTrainer`."""
    plan = SFTConfig(str(folder / "trl"), gradient_checkpointing=False, **_plan())
    return _losses(_in_order(SFTTrainer)(model, plan, train_dataset=_dataset(rows), processing_class=tokenizer()))


def _plan() -> dict[str, Any]:
    return {
        "max_steps": STEPS, "per_device_train_batch_size": ROWS, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "bf16": False,
    }  # fmt: skip


def _dataset(rows: list[list[int]]) -> Dataset:
    return Dataset.from_list([{"input_ids": row} for row in rows])


def _in_order(kind: type) -> Any:
    """The trainer without a shuffle."""

    class InOrder(kind):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def _losses(trainer: Any) -> list[float]:
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "Llama": (lambda: tiny_llama(base=HUGGING_FACE, vocab_size=VOCABULARY), 24),
    "DeepSeek-V2, dense": (lambda: tiny_v2(base=DENSE), 24),
    "DeepSeek-V2, experts": (lambda: tiny_v2(base=MOE, aux_loss_alpha=0.0), 24),
    "DeepSeek-V2, grouped": (lambda: tiny_v2(base=GROUPED, aux_loss_alpha=0.0), 24),
    "DeepSeek-V2, balanced": (lambda: tiny_v2(base=MOE, aux_loss_alpha=0.5), 8),
}
"""Of each a model, and how long its rows are; padding takes part in the balance of others, so those are all as long."""
TRAINERS = {"ours": by_ours, "transformers": by_transformers, "TRL": by_trl}


def judge(build: Callable[[], Any], longest: int) -> dict[str, float]:
    """How far others' losses are from ours, and the weights of transformers' from ours."""
    first, rows, losses, learned = build(), documents(longest), {}, {}
    first.config.pad_token_id, first.config.bos_token_id, first.config.eos_token_id = 0, None, 2
    if getattr(first.config, "n_routed_experts", None) and first.config.aux_loss_alpha:
        first.config.output_router_logits = True  # as SFTTrainer sets it: the loss of balance is told
    with TemporaryDirectory() as folder:
        for name, train in TRAINERS.items():
            transformers.set_seed(0)
            model = copy.deepcopy(first)
            losses[name] = torch.tensor(train(model, rows, Path(folder)))
            learned[name] = model.state_dict()
    assert all(len(found) == STEPS for found in losses.values())
    assert float((losses["ours"][0] - losses["ours"][-1]).abs()) > 100 * CLOSE  # something was learned
    apart = {name: float((losses[name] - losses["ours"]).abs().max()) for name in ("transformers", "TRL")}
    weights = [(learned["ours"][name] - learned["transformers"][name]).abs().max() for name in learned["ours"]]
    return apart | {"weights": float(max(weights))}


def main() -> None:
    """Print the differences of each case; leave with 1 where a loss or a weight is further off than the limit."""
    worst = 0.0
    for name, (build, longest) in CASES.items():
        apart = judge(build, longest)
        worst = max(worst, *apart.values())
        print(f"{name}: {', '.join(f'{who} {difference:.1e}' for who, difference in apart.items())}", flush=True)
    sys.exit(0 if worst <= CLOSE else 1)


if __name__ == "__main__":
    main()

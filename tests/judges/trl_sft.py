"""TRL's SFTTrainer on our models: 20 step losses, plain, packed and free of padding, with and without LoRA.

    python -m venv --system-site-packages JUDGE && JUDGE/bin/pip install trl peft
    PYTHONPATH=src:. JUDGE/bin/python -m tests.judges.trl_sft

Models are tiny and random, and computed in float32. A Llama is judged by transformers' own on the same weights, under
the same trainer. A DeepSeek-V2 is judged by a copy whose decoder is given one document at a time, so that no two can
meet. A model with experts and a balance loss is judged by transformers' ``Trainer`` on a copy.
"""

import copy
import sys
from collections.abc import Callable
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers.modeling_outputs import MoeModelOutputWithPast
from trl import SFTConfig, SFTTrainer

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from tests.fakes import GROUPED, MOE, tiny_v2

CLOSE, STEPS, VOCABULARY = 1e-4, 20, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packing": {"packing": True, "max_length": 32},
    "padding_free": {"padding_free": True, "max_length": None},
}


def documents() -> Dataset:
    """Documents of 3 to 24 tokens."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 25, (96,), generator=draw).tolist()
    return Dataset.from_list(
        [{"input_ids": torch.randint(3, VOCABULARY, (n,), generator=draw).tolist()} for n in lengths]
    )


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One that names the special tokens; the documents are tokens already."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w2"
    )


def losses(model: Any, lora: bool, **way: Any) -> torch.Tensor:
    """The loss of each step of a run; LoRA's first weights are the same in every run."""
    transformers.set_seed(0)
    plan = {
        "max_steps": STEPS, "per_device_train_batch_size": 3, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    adapters = LoraConfig(target_modules=["q_proj", "o_proj"], r=4, task_type="CAUSAL_LM") if lora else None
    with TemporaryDirectory() as folder:
        run = SFTTrainer(
            model,
            SFTConfig(folder, **plan | way),
            train_dataset=documents(),
            processing_class=tokenizer(),
            peft_config=adapters,
        )
        run.train()
    return torch.tensor([float(entry["loss"]) for entry in run.state.log_history if "loss" in entry])


def llamas() -> tuple[Any, Any]:
    """Our Llama and transformers' on the same weights."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    ours = LlamaForCausalLM(LlamaConfig(**SIZES))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def apart(model: Any) -> Any:
    """A copy whose decoder is given the documents of a row one at a time, as positions that start at 0 tell them."""
    other = copy.deepcopy(model)
    decoder = other.model
    alone = decoder.forward

    def forward(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if position_ids is None:
            return alone(input_ids=input_ids, **kwargs)
        assert len(input_ids) == 1
        starts = [*(position_ids[0] == 0).nonzero().flatten().tolist(), input_ids.shape[1]]
        parts = [
            alone(input_ids=input_ids[:, start:stop], use_cache=False).last_hidden_state
            for start, stop in pairwise(starts)
        ]
        return MoeModelOutputWithPast(last_hidden_state=torch.cat(parts, dim=1))

    decoder.forward = forward
    return other


def deepseeks(base: dict[str, Any]) -> tuple[Any, Any]:
    """A DeepSeek-V2 without a balance loss, and the same with its documents apart."""
    model = tiny_v2(base=base | {"aux_loss_alpha": 0.0})
    return model, apart(model)


def balanced() -> float:
    """How far the losses of SFTTrainer and of transformers' Trainer are apart where experts are balanced."""
    model, rows = tiny_v2(aux_loss_alpha=0.5), documents().filter(lambda row: len(row["input_ids"]) > 8)
    rows = rows.map(lambda row: {"input_ids": row["input_ids"][:8], "labels": row["input_ids"][:8]})
    other, found = copy.deepcopy(model), []
    other.config.output_router_logits = True  # as SFTTrainer sets it
    plan = {
        "max_steps": STEPS, "per_device_train_batch_size": 3, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        how = SFTConfig(folder, bf16=False, gradient_checkpointing=False, **plan)
        runs = [
            SFTTrainer(model, how, train_dataset=rows, processing_class=tokenizer()),
            transformers.Trainer(other, transformers.TrainingArguments(folder, **plan), train_dataset=rows),
        ]
        for run in runs:
            transformers.set_seed(0)
            run.train()
            found.append([float(entry["loss"]) for entry in run.state.log_history if "loss" in entry])
    return float((torch.tensor(found[0]) - torch.tensor(found[1])).abs().max())


PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Llama, by transformers'": llamas,
    "DeepSeek-V2, by documents apart": lambda: deepseeks(MOE),
    "DeepSeek-V2, grouped routing": lambda: deepseeks(GROUPED),
}


def main() -> None:
    """Print the largest difference of each case; leave with 1 where one is above the limit."""
    worst = 0.0
    for name, build in PAIRS.items():
        for way, options in WAYS.items():
            for lora in (False, True):
                found, wanted = (losses(model, lora, **options) for model in build())
                assert len(found) == len(wanted) == STEPS
                apart_by = float((found - wanted).abs().max())
                worst = max(worst, apart_by)
                print(f"{name}, {way}{', LoRA' if lora else ''}: {apart_by:.1e}", flush=True)
    apart_by = balanced()
    print(f"DeepSeek-V2 with a balance loss, by Trainer: {apart_by:.1e}")
    sys.exit(0 if max(worst, apart_by) <= CLOSE else 1)


if __name__ == "__main__":
    main()

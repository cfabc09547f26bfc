"""Measures a model on freshly drawn pictures that training never sees, and writes the table beside its weights.

    python -m recipes.vl2_nano.evaluate src/modelwright/zoo/vl2-nano

Answers are greedy, through the processor and ``generate``, as a user gets them. ``probe`` draws the questions and
judges the answers by their facts.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from recipes.vl2_nano.questions import PROBES, Probe, probe

SEED = 20_260_101  # far from every seed of training
GOALS = {"colour": 0.95, "shape": 0.95, "count": 0.90, "reading": 0.85, "grounding": 0.85, "absent": 0.90}


def conversation(item: Probe) -> list[dict[str, str]]:
    """The probe as official messages, the last answer left open."""
    turns = [(turn.question, turn.answer) for turn in item.history] + [(item.question, "")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("<|User|>", "<|Assistant|>"), turn, strict=True)
    ]
    messages[0]["content"] = "<image>\n" * len(item.pictures) + messages[0]["content"]
    return messages


@torch.no_grad()
def answers(model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, items: list[Probe]) -> list[str]:
    """Greedy answers to a batch of probes, special tokens kept."""
    inputs = processor(
        conversations=[conversation(item) for item in items], images=[list(item.pictures) for item in items]
    ).to(model.device)
    inputs.pop("labels", None)
    tokens = model.generate(**inputs, max_new_tokens=160, do_sample=False)  # pyright: ignore[reportAttributeAccessIssue]
    texts = processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :])
    return [text.split(str(processor.tokenizer.eos_token))[0].strip() for text in texts]


def measure(
    model: DeepseekVLV2ForCausalLM, processor: DeepseekVLV2Processor, count: int, batch: int, show: int = 0
) -> dict[str, float]:
    """The share of right answers for every task; ``show`` mistakes of each are printed."""
    shares = {}
    for number, task in enumerate(PROBES):
        rng = np.random.default_rng([SEED, number])
        shares[task] = share(model, processor, task, [probe(rng, task) for _ in range(count)], batch, show)
    return shares


def share(
    model: DeepseekVLV2ForCausalLM,
    processor: DeepseekVLV2Processor,
    task: str,
    items: list[Probe],
    batch: int,
    show: int = 0,
) -> float:
    """The share of right answers to ``items``, which is printed, with ``show`` mistakes."""
    found = [text for i in range(0, len(items), batch) for text in answers(model, processor, items[i : i + batch])]
    right = [item.check(text) for item, text in zip(items, found, strict=True)]
    goal = f"(goal {GOALS[task]:.0%})" if task in GOALS else ""
    print(f"{task:16} {sum(right) / len(items):6.1%} {goal}", flush=True)
    wrong = [i for i, fine in enumerate(right) if not fine][:show]
    for i in wrong:
        print(f"    {items[i].question!r}: {found[i]!r}, not {items[i].expected!r}")
    return sum(right) / len(items)


def main() -> None:
    """Measure, print, and write ``accuracy.json`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400, help="questions of each task")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--show", type=int, default=0, help="mistakes to print for each task")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    args = parser.parse_args()
    processor = DeepseekVLV2Processor.from_pretrained(args.folder)
    model = DeepseekVLV2ForCausalLM.from_pretrained(args.folder).eval()
    shares = measure(model, processor, args.count, args.batch, args.show)
    if not args.dry_run:
        table = {"seed": SEED, "questions_per_task": args.count, "dtype": str(model.dtype), "accuracy": shares}
        (args.folder / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

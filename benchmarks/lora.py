"""LoRA with experts: ours beside peft's `target_parameters`, on the same model, rows and targets.

    python benchmarks/lora.py [--cases nano experts] [--rounds 3] [--steps 6] [--json FILE]

Each contestant trains in a process of its own with one thread, in turns: fp32, AdamW, rank 16 beside attention and
experts (of dense layers peft would take the names for those of experts). Shown are the medians of tokens per CPU second
(the first step is not counted) and of the peak memory of a process above what it held with the model loaded and used
once. `nano` is the package's vl2-nano on text, `experts` a decoder of 64 experts of which a token visits 6; rows have
256 tokens. The first losses of both must be equal, B being 0, and the last ones near.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

RANK, ALPHA, RATE = 16, 32, 1e-4
CASES: dict[str, dict[str, Any]] = {
    "nano": {"rows": 1, "tokens": 256},
    "nano, 4 rows": {"rows": 4, "tokens": 256},
    "experts": {"rows": 1, "tokens": 256},
    "experts, 4 rows": {"rows": 4, "tokens": 256},
}
EXPERTS: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "moe_intermediate_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 128,
    "q_lora_rank": None,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "max_position_embeddings": 1024,
}
ATTENTION = ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        who, case = options.worker
        print(json.dumps(measure(who, case, options.steps)))
        return
    results = {}
    for case in options.cases:
        rounds = [{who: apart(who, case, options.steps) for who in ("ours", "peft")} for _ in range(options.rounds)]
        results[case] = median = {
            who: {
                key: statistics.median(each[who][key] for each in rounds)
                for key in ("speed", "memory", "peak", "first", "last")
            }
            for who in ("ours", "peft")
        }
        ours, theirs = median["ours"], median["peft"]
        assert abs(ours["first"] - theirs["first"]) < 1e-5 * theirs["first"], (ours["first"], theirs["first"])
        assert abs(ours["last"] - theirs["last"]) < 2e-2 * theirs["last"], (ours["last"], theirs["last"])
        print(
            f"{case:16} tokens/CPU s: ours {ours['speed']:.0f}, peft {theirs['speed']:.0f} "
            f"({ours['speed'] / theirs['speed']:.2f} times); MiB above the model: ours {ours['memory']:.0f}, "
            f"peft {theirs['memory']:.0f} ({ours['memory'] / theirs['memory']:.2f}); peak of all: "
            f"ours {ours['peak']:.0f}, peft {theirs['peak']:.0f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(
            json.dumps({"rank": RANK, "torch": torch.__version__, "results": results}, indent=2) + "\n"
        )


def apart(who: str, case: str, steps: int) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--worker", who, case, "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(who: str, case: str, steps: int) -> dict[str, float]:
    """Tokens per CPU second, MiB above the loaded model and in all at the peak, losses of the first and last step."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(case)
    rows, tokens = CASES[case]["rows"], CASES[case]["tokens"]
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(3, vocabulary, (steps + 1, rows, tokens), generator=torch.Generator().manual_seed(1))
    step_plain(model, ids[0, :1, :8])
    before = peak()
    model = adapt(model.requires_grad_(False), who)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=RATE)
    model.train()
    start, losses = 0.0, []
    for step, batch in enumerate(ids):
        start = time.process_time() if step == 1 else start
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    seconds = time.process_time() - start
    speed = steps * rows * tokens / seconds
    return {"speed": speed, "memory": peak() - before, "peak": peak(), "first": losses[0], "last": losses[-1]}


def step_plain(model: Any, ids: torch.Tensor) -> None:
    """One step of the norms alone, on a few tokens: what libraries hold once they are used is no contestant's."""
    for name, each in model.named_parameters():
        each.requires_grad_("norm" in name)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def build(case: str) -> Any:
    """The model of a case, its weights drawn or read."""
    if case.startswith("nano"):
        from modelwright import DeepseekVLV2ForCausalLM
        from modelwright.zoo import path

        return DeepseekVLV2ForCausalLM.from_pretrained(path("vl2-nano"))
    from modelwright import DeepseekV2Config, DeepseekV2ForCausalLM

    return DeepseekV2ForCausalLM(DeepseekV2Config(**EXPERTS))


def adapt(model: Any, who: str) -> Any:
    """The model with LoRA beside the same weights and for the same targets."""
    if who == "ours":
        from modelwright.configs.run import LoraPart, TunePart
        from modelwright.training.tuning import settle

        settle(model, TunePart(lora=LoraPart(rank=RANK, alpha=ALPHA, targets=("attention", "experts"))))
        return model
    import peft

    stacks = ["experts.gate_up_proj", "experts.down_proj"]
    how = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(ATTENTION), target_parameters=stacks)
    return peft.get_peft_model(model, how)


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

"""What rounding costs vl2-nano: perplexity of answers it was never shown, by our methods and by llama.cpp's formats.

    python -m benchmarks.perplexity [--examples 200] [--out benchmarks/results/perplexity.json]

Each method rounds the same matrices of the same trained weights, in fp32 arithmetic. Q8_0 and Q4_0 are written from
the format's definition: blocks of 32 with a scale in fp16, the largest magnitude being 127 steps, or -8. The answers
belong to freshly drawn pictures and are packed as in training; every method reads the same ones.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, quantize_model, zoo
from modelwright.checkpoints.quantized_model import quantized_names
from recipes.vl2_nano.evaluate import SEED
from recipes.vl2_nano.packing import Packer, collate
from recipes.vl2_nano.questions import make_example

BLOCK = 32
METHODS: dict[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "int4": {"method": "int4"},
    "int4, symmetric, groups of 32": {"method": "int4", "group": 32, "symmetric": True},
    "int4, symmetric, groups of 64": {"method": "int4", "group": 64, "symmetric": True},
}
Rounding = Callable[[Tensor], Tensor]


def q8_0(weight: Tensor) -> Tensor:
    """What llama.cpp's Q8_0 makes of ``[out, in]``."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    steps = torch.where(scale == 0, 0.0, blocks / scale).round()
    return (steps * scale.half().float()).flatten(-2)


def q4_0(weight: Tensor) -> Tensor:
    """What llama.cpp's Q4_0 makes of ``[out, in]``."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    scale = largest / -8
    steps = (torch.where(scale == 0, 0.0, blocks / scale) + 8.5).floor().clamp(0, 15) - 8
    return (steps * scale.half().float()).flatten(-2)


def load() -> DeepseekVLV2ForCausalLM:
    """The trained model, in fp32."""
    return DeepseekVLV2ForCausalLM.from_pretrained(zoo.path("vl2-nano"), dtype=torch.float32).eval()


def rounded_by(rounding: Rounding) -> DeepseekVLV2ForCausalLM:
    """The model with each matrix rounded that our methods round."""
    model, like = load(), quantize_model(load(), "int8")
    names = quantized_names(like.places())
    model.load_state_dict({name: rounding(tensor) for name, tensor in official(model).items() if name in names}, False)
    return model


def official(model: DeepseekVLV2ForCausalLM) -> dict[str, Tensor]:
    """Its weights by their names on disk."""
    own = model.state_dict()
    return {name: own[place.parameter][place.index] for name, place in model.places().items()}


@torch.no_grad()
def perplexity(model: DeepseekVLV2ForCausalLM, batches: list[dict[str, Tensor]]) -> float:
    """Of the answers' tokens, each counted once."""
    total = count = 0.0
    for batch in batches:
        answers = int((batch["labels"][:, 1:] >= 0).sum())
        total += float(model(**batch).loss) * answers
        count += answers
    return math.exp(total / count)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="pictures, each with a dozen questions")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    packer = Packer(DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano")))
    rng = np.random.default_rng([SEED, args.examples])
    rows = [packer.row(make_example(rng)) for _ in range(args.examples)]
    batches = [collate(rows[i : i + 8], packer.processor) for i in range(0, len(rows), 8)]
    models: dict[str, Callable[[], DeepseekVLV2ForCausalLM]] = {
        "as trained": load,
        **{name: lambda how=how: quantize_model(load(), **how) for name, how in METHODS.items()},
        "llama.cpp Q8_0": lambda: rounded_by(q8_0),
        "llama.cpp Q4_0": lambda: rounded_by(q4_0),
    }
    found = {name: perplexity(make(), batches) for name, make in models.items()}
    for name, value in found.items():
        print(f"{name:32} {value:.5f}")
    if args.out:
        args.out.write_text(json.dumps({"examples": args.examples, "perplexity": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

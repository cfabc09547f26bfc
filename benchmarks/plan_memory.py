"""Predicted against measured peak memory: random-weight models that read a prompt and decode, each in its own process.

    python benchmarks/plan_memory.py [--case NAME] [--out benchmarks/results/plan_memory.json]

Measured is the largest resident set of the process less that of one that has imported everything and run a tiny model
of the same family. The model is built empty and filled in place, then reads a prompt and decodes two tokens with
`generate`. Predicted is what `modelwright.planner` says of the same config, context and types; attention is planned as
written out where torch's CPU kernel does so (key and value widths differ).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DECODER = {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 4096,
}
EXPERTS = {"n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1}
CASES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "dtype": "bfloat16",
        "context": 512,
        "config": DECODER
        | EXPERTS
        | {"hidden_size": 1024, "intermediate_size": 4096, "moe_intermediate_size": 768, "num_hidden_layers": 6}
        | {"vocab_size": 32000},
        "tiny": {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 2},
        "eager": True,
    },
    "llama": {
        "dtype": "float32",
        "context": 768,
        "config": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
        | {"num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
        "tiny": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
        "eager": False,
    },
    "deepseek_vl2": {
        "dtype": "bfloat16",
        "context": 700,
        "image": (600, 400),
        "config": {
            "vision_config": {"image_size": 384, "patch_size": 14, "width": 1152, "layers": 6, "heads": 16}
            | {"mlp_ratio": 3.7362},
            "candidate_resolutions": [[384, 384], [768, 384]],
            "language_config": DECODER
            | EXPERTS
            | {"use_mla": False, "hidden_size": 1280, "num_attention_heads": 10, "num_key_value_heads": 10}
            | {"intermediate_size": 6848, "moe_intermediate_size": 896, "num_hidden_layers": 6, "vocab_size": 50000},
        },
        "tiny": {},
        "eager": False,
    },
}


@dataclass(frozen=True)
class Result:
    """One model's peak; sizes in MiB, `error` is (predicted - measured) / measured."""

    case: str
    dtype: str
    context: int
    parameters: int
    weights_mib: float
    kv_mib: float
    workspace_mib: float
    predicted_mib: float
    measured_mib: float
    error: float


def config_of(case: str, values: dict[str, Any]) -> Any:
    """The checked config of a case."""
    from modelwright.families.deepseek_v2.config import DeepseekV2Config
    from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
    from modelwright.families.llama.config import LlamaConfig

    classes = {"deepseek_v2": DeepseekV2Config, "llama": LlamaConfig, "deepseek_vl2": DeepseekVLV2Config}
    return classes[case](**values)


def smaller(case: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The same family and kernels in a few MiB, to run before measuring."""
    if case != "deepseek_vl2":
        return settings["config"] | settings["tiny"] | {"vocab_size": 64}
    language = settings["config"]["language_config"] | {"hidden_size": 80, "num_hidden_layers": 2, "vocab_size": 64}
    language |= {"intermediate_size": 64, "moe_intermediate_size": 64}
    vision = settings["config"]["vision_config"] | {"width": 64, "layers": 1, "heads": 4}
    return settings["config"] | {"language_config": language, "vision_config": vision}


def run(config: Any, dtype: str, context: int, tiles: int, image_tokens: int) -> None:
    """Build the model empty, fill it in place, read `context` - 2 tokens and decode two."""
    import torch

    from modelwright.families import model_class

    kind: Any = model_class({"model_type": config.model_type, "architectures": None})
    with torch.device("meta"):
        model = kind(config).to(getattr(torch, dtype)).eval()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    ids = torch.full((1, context - 2), 5)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if tiles:
        inputs |= pictures(config, ids, tiles, image_tokens, getattr(torch, dtype))
    model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)


def pictures(config: Any, ids: Any, tiles: int, image_tokens: int, dtype: Any) -> dict[str, Any]:
    """The arrays of one picture of `tiles` tiles at the start of the prompt."""
    import torch

    side, seen = config.tile_size, torch.zeros_like(ids, dtype=torch.bool)
    seen[:, 1 : 1 + image_tokens] = True
    return {
        "images": torch.zeros(1, tiles, 3, side, side, dtype=dtype),
        "images_seq_mask": seen,
        "images_spatial_crop": torch.tensor([[[tiles - 1, 1]]]),
    }


def measure(case: str) -> Result:
    """Run one case in this process, which must be new."""
    from modelwright.planner.plan import plan

    settings = CASES[case]
    config, small = config_of(case, settings["config"]), config_of(case, smaller(case, settings))
    dtype, context, image = settings["dtype"], settings["context"], settings.get("image")
    attention = "eager" if settings["eager"] else "fused"
    planned = plan(config, context=context, dtype=dtype, image=image, attention=attention)
    seen = planned.image
    run(small, dtype, context, seen.tiles if seen else 0, seen.tokens if seen else 0)
    before = resident()
    run(config, dtype, context, seen.tiles if seen else 0, seen.tokens if seen else 0)
    measured, memory = peak() - before, planned.memory
    return Result(
        case=case,
        dtype=dtype,
        context=context,
        parameters=planned.counts.parameters.total,
        weights_mib=round(memory.weights / 2**20, 1),
        kv_mib=round(memory.kv / 2**20, 1),
        workspace_mib=round(memory.workspace / 2**20, 1),
        predicted_mib=round(memory.total / 2**20, 1),
        measured_mib=round(measured / 2**20, 1),
        error=round(memory.total / measured - 1, 4),
    )


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The most there ever were."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure every case in a process of its own, print them, and write the file that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="measure this one, here, and print it as JSON")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(asdict(measure(options.case))))
        return
    results = []
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{case}: predicted {results[-1]['predicted_mib']} MiB, measured {results[-1]['measured_mib']} MiB")
    if options.out is not None:
        report = {"machine": platform.machine(), "python": platform.python_version(), "results": results}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The JSON object: its names, which programs rely on, and that they hold what the plan says."""

import json

from modelwright.planner.device import Devices
from modelwright.planner.plan import plan
from modelwright.planner.report import as_object
from tests.planner.small import deepseek, vl2

PARTS = [
    "embedding",
    "attention",
    "dense_ffn",
    "routed_experts",
    "shared_experts",
    "router",
    "norms",
    "vision",
    "projector",
    "head",
    "total",
]
MEMORY = ["weights", "kv", "workspace", "gradients", "optimizer", "activations", "total"]
NAMES = {
    "model": ["family", "layers", "hidden_size", "vocabulary", "max_context"],
    "parameters": PARTS,
    "activated_parameters": PARTS,
    "weight_bytes": ["float32", "bfloat16", "float16", "fp8", "int8", "int4"],
    "kv_bytes_per_token": ["cached", "multi_head"],
    "planned": [
        "task",
        "context",
        "batch",
        "optimizer",
        "recompute",
        "attention",
        "dtype",
        "compute_dtype",
        "kv_dtype",
        "quant",
    ],
    "layout": ["ranks", "data", "model", "pipeline", "context", "expert", "expert_model", "sharded"],
    "image": ["width", "height", "tiles", "tokens"],
    "device": ["memory", "count", "fits", "largest_context", "largest_batch"],
}


def test_the_names_stay():
    answer = as_object(plan(vl2(), image=(200, 100), devices=Devices(2**30, 2)))
    assert list(answer) == [
        "model",
        "parameters",
        "activated_parameters",
        "flops",
        "weight_bytes",
        "kv_bytes_per_token",
        "image",
        "planned",
        "memory",
        "layout",
        "ranks",
        "device",
        "fields_without_effect",
    ]
    for name, keys in NAMES.items():
        assert list(answer[name]) == keys, name
    assert list(answer["flops"]) == ["context", "prefill", "decode"]
    assert list(answer["flops"]["prefill"]) == list(answer["flops"]["decode"]) == PARTS
    assert list(answer["memory"]) == ["serving", "training", "training_with_recompute"]
    assert all(list(memory) == MEMORY for memory in answer["memory"].values())
    assert [list(rank) for rank in answer["ranks"]] == [
        ["first_rank", "last_rank", "first_layer", "last_layer", "heads", "kv_heads", "experts", "memory"]
    ]


def test_it_survives_json_and_says_what_the_plan_says():
    planned = plan(deepseek(), train=True, context=32, batch=2)
    answer = json.loads(json.dumps(as_object(planned)))
    assert answer["parameters"]["total"] == planned.counts.parameters.total
    assert answer["flops"]["prefill"]["total"] == planned.counts.prefill(32).total
    assert answer["memory"]["training"]["total"] == planned.memory.total
    assert answer["planned"]["task"] == "train" and answer["planned"]["optimizer"] == "adamw"
    assert (answer["image"], answer["device"]) == (None, None)

"""A plan as the object of ``--json``: plain numbers and words under names that stay; bytes, tokens, FLOPs, no units."""

from typing import Any

from modelwright.planner.memory import Memory
from modelwright.planner.parts import ByPart
from modelwright.planner.plan import Plan, Rank


def as_object(plan: Plan) -> dict[str, Any]:
    """What `json.dumps` takes: `image`, and `device`'s answers, are None where nothing was asked."""
    counts, work = plan.counts, plan.work
    return {
        "model": {
            "family": counts.model_type,
            "layers": len(counts.layers),
            "hidden_size": counts.dim,
            "vocabulary": counts.vocab,
            "max_context": plan.max_context,
        },
        "parameters": _with_total(counts.parameters),
        "activated_parameters": _with_total(counts.activated),
        "flops": {
            "context": work.context,
            "prefill": _with_total(counts.prefill(work.context, work.tiles)),
            "decode": _with_total(counts.decode(work.context)),
        },
        "weight_bytes": plan.weights,
        "kv_bytes_per_token": {"cached": plan.kv_bytes_per_token, "multi_head": plan.mha_kv_bytes_per_token},
        "image": None if plan.image is None else _image(plan),
        "planned": {
            "task": "serve" if work.optimizer is None else "train",
            "context": work.context,
            "batch": work.batch,
            "optimizer": work.optimizer,
            "recompute": list(work.recompute) if isinstance(work.recompute, tuple) else work.recompute,
            "attention": "eager" if work.explicit else "fused",
            "dtype": plan.precision.weights,
            "compute_dtype": plan.precision.compute,
            "kv_dtype": plan.precision.kv,
            "quant": plan.quantized_by,
        },
        "memory": {
            "serving": _memory(plan.serving),
            "training": _memory(plan.training),
            "training_with_recompute": _memory(plan.recomputing),
        },
        "layout": _layout(plan),
        "ranks": [_rank(rank) for rank in plan.ranks],
        "device": None if plan.devices is None else _device(plan),
        "fields_without_effect": list(plan.without_effect),
    }


def _with_total(parts: ByPart) -> dict[str, int]:
    return {**parts.items(), "total": parts.total}


def _memory(memory: Memory) -> dict[str, int]:
    return {**memory.items(), "total": memory.total}


def _image(plan: Plan) -> dict[str, int]:
    assert plan.image is not None
    width, height = plan.image.size
    return {"width": width, "height": height, "tiles": plan.image.tiles, "tokens": plan.image.tokens}


def _layout(plan: Plan) -> dict[str, int | bool]:
    layout = plan.layout
    return {
        "ranks": layout.ranks,
        "data": layout.data,
        "model": layout.model,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "expert": layout.expert,
        "expert_model": layout.expert_model,
        "sharded": layout.sharded,
    }


def _rank(rank: Rank) -> dict[str, Any]:
    return {
        "first_rank": rank.first,
        "last_rank": rank.last,
        "first_layer": rank.layers.start,
        "last_layer": rank.layers.stop - 1,
        "heads": rank.heads,
        "kv_heads": rank.kv_heads,
        "experts": rank.experts,
        "memory": _memory(rank.memory),
    }


def _device(plan: Plan) -> dict[str, Any]:
    assert plan.devices is not None
    return {
        "memory": plan.devices.memory,
        "count": plan.devices.count,
        "fits": plan.fits,
        "largest_context": plan.largest_context,
        "largest_batch": plan.largest_batch,
    }

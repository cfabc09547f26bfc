"""A plan as tables for people, on stdout."""

from modelwright.cli.tables import write_lines, write_table
from modelwright.planner.memory import Memory
from modelwright.planner.plan import Plan
from modelwright.planner.precision import BYTES_OF
from modelwright.planner.units import format_bytes, format_count, format_operations

PART_NAMES = {
    "embedding": "embedding",
    "attention": "attention",
    "dense_ffn": "dense feed-forward",
    "routed_experts": "routed experts",
    "shared_experts": "shared experts",
    "router": "router",
    "norms": "norms",
    "vision": "vision tower",
    "projector": "projector",
    "head": "head",
}
MEMORY_NAMES = {"kv": "keys and values", "optimizer": "optimizer states"}


def show(plan: Plan, name: str) -> None:
    """Print the tables of a plan; `name` is what the user called the model."""
    counts, work = plan.counts, plan.work
    every, activated = format_count(counts.parameters.total), format_count(counts.activated.total)
    layers = f"{counts.model_type}, {len(counts.layers)} layers"
    sequences = f"{work.batch} sequence{'s' * (work.batch != 1)} of {work.context} tokens"
    write_lines(f"{name}: {layers}, {every} parameters, {activated} activated per token")
    write_lines(f"planned for {sequences}, {_types(plan)}{_beyond(plan)}\n")
    for headings, rows in (_parameters(plan), _costs(plan), _weights(plan), _memory(plan), _ranks(plan)):
        write_table(rows, headings)
        write_lines("")
    if plan.devices is not None:
        write_lines(verdict(plan))
    if plan.without_effect:
        write_lines(f"no effect on torch: {', '.join(by_section(plan.without_effect))}")


def verdict(plan: Plan) -> str:
    """Whether it fits the devices, and what is the most that does."""
    assert plan.devices is not None
    task = "serving" if plan.work.optimizer is None else f"training with {plan.work.optimizer}"
    answer = "FITS" if plan.fits else "DOES NOT FIT"
    needed = f"the fullest rank needs {format_bytes(plan.memory.total)} of {format_bytes(plan.devices.memory)}"
    lines = [f"{answer}: {task} on {plan.devices}: {needed}", f"layout: {plan.layout}"]
    if not plan.fits and plan.layout.ranks > 1:
        lines[1] += " (no layout fits; this one comes closest)"
    if not plan.largest_context and not plan.largest_batch:
        lines.append("no context and no batch fits")
        return "\n".join(lines)
    beyond = f" (the model was made for {plan.max_context})" if (plan.largest_context or 0) > plan.max_context else ""
    lines.append(f"largest context with batch {plan.work.batch}: {plan.largest_context or 'none'}{beyond}")
    lines.append(f"largest batch with context {plan.work.context}: {plan.largest_batch or 'none'}")
    return "\n".join(lines)


def by_section(lines: tuple[str, ...]) -> list[str]:
    """The lines ``key (reason)``, those of one section with one reason as one: ``context.* (reason)``."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        name, _, reason = line.partition(" ")
        found.setdefault((name.partition(".")[0], reason), []).append(name)
    names = ((names[0] if len(names) == 1 else f"{section}.*", reason) for (section, reason), names in found.items())
    return [f"{name} {reason}" for name, reason in names]


def _types(plan: Plan) -> str:
    precision = plan.precision
    quant = plan.quantized_by
    weights = f"{quant} weights over {precision.weights}" if quant else f"{precision.weights} weights"
    return f"{weights}, {precision.kv} cache, {'eager' if plan.work.explicit else 'fused'} attention"


def _beyond(plan: Plan) -> str:
    longer = plan.work.context > plan.max_context
    return f"; longer than the {plan.max_context} tokens that the model was made for" if longer else ""


Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""The headings of a table, and its rows."""


def _parameters(plan: Plan) -> Rows:
    every, activated = plan.counts.parameters, plan.counts.activated
    rows = [
        (PART_NAMES[part], f"{number:,}", f"{activated.items()[part]:,}")
        for part, number in every.items().items()
        if number or activated.items()[part]
    ]
    return ("parameters", "all", "activated"), [*rows, ("total", f"{every.total:,}", f"{activated.total:,}")]


def _costs(plan: Plan) -> Rows:
    work, counts = plan.work, plan.counts
    rows = [
        ("one token of cache", format_bytes(plan.kv_bytes_per_token)),
        ("  as multi-head attention", format_bytes(plan.mha_kv_bytes_per_token)),
        (f"reading {work.context} tokens", format_operations(counts.prefill(work.context, work.tiles).total)),
        (f"decoding token {work.context}", format_operations(counts.decode(work.context).total)),
    ]
    if plan.image is not None:
        width, height = plan.image.size
        rows.append((f"picture of {width}x{height}", f"{plan.image.tokens} tokens in {plan.image.tiles} tiles"))
    return ("per sequence", ""), rows


def _weights(plan: Plan) -> Rows:
    return ("weights", ""), [
        (name if name in BYTES_OF else f"{name} over {plan.precision.weights}", format_bytes(size))
        for name, size in plan.weights.items()
    ]


def _memory(plan: Plan) -> Rows:
    columns = {"serving": plan.serving, "training": plan.training, "with recompute": plan.recomputing}
    heading = "memory" if plan.layout.ranks == 1 else "memory of the fullest rank"
    rows = [
        (MEMORY_NAMES.get(part, part), *(_bytes(memory.items()[part]) for memory in columns.values()))
        for part in Memory(0).items()
    ]
    total = ("total", *(format_bytes(memory.total) for memory in columns.values()))
    return (heading, *columns), [*rows, total]


def _ranks(plan: Plan) -> Rows:
    rows = []
    for rank in plan.ranks:
        name = str(rank.first) if rank.first == rank.last else f"{rank.first}-{rank.last}"
        layers = f"{rank.layers.start}-{rank.layers.stop - 1}"
        held = (str(number) for number in (rank.heads, rank.kv_heads, rank.experts))
        rows.append((f"{name}", layers, *held, format_bytes(rank.memory.total)))
    return ("each rank of", "layers", "heads", "kv heads", "experts", "memory"), rows


def _bytes(size: int) -> str:
    return format_bytes(size) if size else "-"

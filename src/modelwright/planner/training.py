"""What a training run takes of one rank: its layout, its batch and what of the model moves, on top of `peak_memory`."""

import math
from dataclasses import dataclass, replace

from modelwright.configs import CheckedConfig
from modelwright.configs.run import RecomputePart, RunConfig
from modelwright.families import family_of, resolve
from modelwright.planner.computing import FLOAT32
from modelwright.planner.counting import count
from modelwright.planner.counts import Counts
from modelwright.planner.layout import Layout, check_layout
from modelwright.planner.memory import OPTIMIZER_BYTES, Memory, Workload, peak_memory
from modelwright.planner.settings import RunSettings, precision_of

KEPT_BY = {"adam": "adamw", "adagrad": "lion", "muon": "lion", "adafactor": "sgd"}
"""Optimizers that keep as much of a parameter as another one that the planner knows; factored moments count as none."""


@dataclass(frozen=True)
class Held:
    """What a run's model holds on one rank, adapters included and as its weights are stored.

    Attributes:
        weights: bytes of what is computed with: weights, or their copies in a shorter type.
        masters: bytes of the float32 weights that are stepped beside such copies.
        trained: numbers that are stepped.
        head: those of them that are the head's weight, whose gradient a chunked loss makes in the forward pass.
        copied: bytes of the largest float32 copy of a weight that a product of the machine takes for a moment.
    """

    weights: int
    masters: int
    trained: int
    head: int = 0
    copied: int = 0


@dataclass(frozen=True)
class RunPlan:
    """What a run takes.

    Attributes:
        counts: the model's sizes.
        layout: over the ranks.
        memory: of the fullest rank.
        sequences: rows of a micro-batch on each data rank; `tokens` those of a row.
        accumulation: passes of each data rank in a step.
    """

    counts: Counts
    layout: Layout
    memory: Memory
    sequences: int
    tokens: int
    accumulation: int


def plan_run(
    config: CheckedConfig, run: RunConfig, ranks: int = 1, held: Held | None = None, chunk: int | None = None
) -> RunPlan:
    """What `run` of the model of `config` takes of `ranks` ranks.

    Args:
        held: what its model holds whole; several ranks share it as they do the model that trains whole. None for that.
        chunk: tokens whose logits are there at once where the run leaves that to the trainer; None: all.

    Raises:
        ConfigError: the layout does not divide the model or the batch, or does not make so many ranks.
    """
    counts, stated = count(config), _stated(config)
    data = run.check_ranks(ranks)
    layout = layout_of(run, data)
    check_layout(counts, layout)
    types = precision_of(config, stated.types.moved(run.model.dtype), None, None, None)
    compute = run.precision.compute or run.model.dtype
    types = replace(types, compute=compute, quant=None, as_stored=False)
    kept = types if run.precision.autocast else replace(types, weights=compute, embedding=compute)
    work = Workload(
        context=min(run.data.seq_length, counts.positions or run.data.seq_length),
        batch=run.batch.micro,
        optimizer=optimizer_kept(run),
        recompute=_recomputed(run, len(counts.layers)),
        explicit=stated.explicit_attention,
        cached=False,
        learned=chunk if run.loss.chunk == "auto" else run.loss.chunk,
    )
    memory = peak_memory(counts, layout, kept, work)
    if held is not None:
        whole, moments = peak_memory(counts, Layout(), kept, work), OPTIMIZER_BYTES[optimizer_kept(run)]
        memory = _holding(memory, whole, held, moments)
        memory = replace(memory, workspace=memory.workspace + held.copied)
    passes = run.batch.global_ // (run.batch.micro * data)
    if passes > 1 and work.learned is not None:  # beside that of the passes before
        head = counts.vocab * counts.dim if held is None else held.head
        memory = replace(memory, workspace=memory.workspace + math.ceil(head / layout.model) * FLOAT32)
    return RunPlan(counts, layout, memory, run.batch.micro, work.context, passes)


def layout_of(run: RunConfig, data: int) -> Layout:
    """The degrees of a run over `data` ranks that read rows of their own; `auto` elsewhere is 1."""
    part = run.parallel
    model, pipeline, context, expert, cut = (
        1 if degree == "auto" else degree
        for degree in (part.model, part.pipeline, part.context, part.expert, part.expert_model)
    )
    shards = data > 1 if part.shard == "auto" else part.shard > 1
    return Layout(
        data=data,
        model=model,
        pipeline=pipeline,
        context=context,
        expert=expert,
        expert_model=cut,
        sharded=shards,
        sequence_parallel=part.sequence and model > 1,
        whole_gradients=shards and not part.shard_gradients and run.batch.global_ > run.batch.micro * data,
        micro_batches=part.micro_batches if pipeline > 1 else None,
        stage_layers=_stages(part.stage_layers, pipeline, part.virtual),
    )


def optimizer_kept(run: RunConfig) -> str:
    """The optimizer that the planner knows and that keeps as much as the run's."""
    part = run.optimizer
    if part.state == "int8":
        return "adamw8bit"
    if part.name == "sgd":
        return "lion" if part.momentum else "sgd"
    return KEPT_BY.get(part.name, part.name)


def _stated(config: CheckedConfig) -> RunSettings:
    return resolve(family_of(config).run_settings)(config)


def _stages(layers: tuple[int, ...] | None, pipeline: int, virtual: int) -> tuple[int, ...] | None:
    """The layers of each rank's stages together."""
    if layers is None or pipeline == 1:
        return None
    return tuple(sum(layers[stage::pipeline][:virtual]) for stage in range(pipeline))


def _recomputed(run: RunConfig, layers: int) -> bool | tuple[int, ...]:
    """Whether all layers are computed again, or how many are; single operations are planned as kept, an upper bound."""
    how = run.recompute
    if not isinstance(how, RecomputePart):
        return how == "full"
    whole = 0 if how.save else (layers if how.layers is None and not how.operations else len(how.layers or ()))
    return whole >= layers or ((whole,) if run.parallel.pipeline == 1 and whole else False)


def _holding(memory: Memory, whole: Memory, held: Held, moments: float) -> Memory:
    """A rank's memory of a model that holds `held` where one that trains whole, on one rank, takes `whole`."""

    def share(part: int, of: int, exact: float) -> int:
        return math.ceil(part / of * exact) if of else 0

    return replace(
        memory,
        weights=share(memory.weights, whole.weights, held.weights),
        gradients=share(memory.gradients, whole.gradients, held.trained * FLOAT32),
        optimizer=math.ceil((held.trained * moments + held.masters) * memory.gradients / whole.gradients),
    )

"""What ``modelwright train --dry-run`` prints: the parts, the memory, the layout, steps and tokens of a run."""

from collections.abc import Iterator
from pathlib import Path

from modelwright.cli.plan_tables import by_section
from modelwright.cli.tables import write_lines, write_table
from modelwright.configs import CheckedConfig
from modelwright.configs.run import RunConfig
from modelwright.errors import UserError
from modelwright.families import family_of
from modelwright.planner.training import Held, RunPlan, plan_run
from modelwright.planner.units import format_bytes, format_count


def show_run(run: RunConfig, model: CheckedConfig, file: Path, folder: Path, ranks: int = 1) -> None:
    """Print the plan of a run; the model is built without memory for its weights, and nothing is written.

    Args:
        folder: what the run's paths are relative to.
    """
    rows, held, chunk = built(run, model, folder)
    whole, trained = sum(row[1] for row in rows), sum(row[2] for row in rows)
    plan = plan_run(model, run, ranks, held, chunk)
    layers = f"{plan.counts.model_type}, {len(plan.counts.layers)} layers"
    share = "all of which train" if trained == whole else f"{format_count(trained)} of which train"
    write_lines(f"{file}: {layers}, {format_count(whole)} parameters, {share}\n")
    write_table(
        [(part, f"{number:,}", f"{moved:,}") for part, number, moved in [*rows, ("total", whole, trained)]],
        ("parameters", "all", "trained"),
    )
    write_lines("")
    memory = {name: size for name, size in plan.memory.items().items() if size}
    heading = "memory" if plan.layout.ranks == 1 else "memory of the fullest rank"
    rows_of_memory = [(name, format_bytes(size)) for name, size in memory.items()]
    write_table([*rows_of_memory, ("total", format_bytes(plan.memory.total))], (heading, ""))
    write_lines("")
    write_table(_facts(run, plan, model, folder), None, (0, 1))
    _show_without_effect(run, model, ranks)


def built(run: RunConfig, model: CheckedConfig, folder: Path) -> tuple[list[tuple[str, int, int]], Held, int]:
    """Each part of the model, with its parameters and how many of them train, what all of it holds, and how many
    tokens of a loss have logits at once on this machine."""
    import torch

    from modelwright.ops.cross_entropy import rows_at_once
    from modelwright.training.build import found_at
    from modelwright.training.checkpoints.export import check_export
    from modelwright.training.precision import held_by
    from modelwright.training.tuning import settle

    adapter = None if run.model.adapter is None else found_at(run.model.adapter, folder)
    with torch.device("meta"):
        made = family_of(model).causal_class(model)
    with torch.device("cpu" if adapter else "meta"):  # an adapter is read, and LoRA would be drawn for nothing
        tuned = settle(made, run.tune, adapter=adapter)
    check_export(made, run)
    compute = getattr(torch, run.precision.compute or run.model.dtype)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    rows = [(row.part, row.total, row.trainable) for row in tuned.table]
    chunk = rows_at_once(model.get_text_config().vocab_size, device)
    return rows, held_by(made, compute, run.precision.autocast, device), chunk


def planned(run: RunConfig, model: CheckedConfig, ranks: int = 1, folder: Path = Path()) -> RunPlan:
    """The plan of a run of a model of this config; its paths are relative to ``folder``, by default the current one."""
    return plan_run(model, run, ranks, *built(run, model, folder)[1:])


def _facts(run: RunConfig, plan: RunPlan, model: CheckedConfig, folder: Path) -> list[tuple[str, str]]:
    rows = run.batch.global_
    tokens = rows * plan.tokens
    batch = f"{rows} rows of up to {plan.tokens} tokens: micro-batches of {plan.sequences}"
    if plan.accumulation > 1:
        batch += f", {plan.accumulation} of them summed"
    facts = [("layout", str(plan.layout)), ("a step", batch)]
    if run.steps is not None:
        facts += [("steps", f"{run.steps:,}"), ("tokens", f"at most {run.steps * tokens:,}")]
    else:
        facts += [("epochs", str(run.epochs)), *_counted(run, model, folder, tokens)]
    facts.append(("rate", f"{run.optimizer.name} {run.optimizer.lr:g}, {run.schedule.name}"))
    if not run.loss.per_token:
        facts.append(("loss", "the mean of each micro-batch: other sizes of micro-batches give other gradients"))
    facts += [("missing", said) for said in _missing(run, folder)]
    facts.append(("output", run.output))
    return facts


def _missing(run: RunConfig, folder: Path) -> Iterator[str]:
    """What the run would be refused for when it opens its data, a sentence for each source whose files are not here."""
    from modelwright.data.sources.opened import check_source

    root = None if run.data.root is None else Path(run.data.root)
    for part in (*run.data.train, *run.data.eval):
        try:
            check_source(part, root, folder)
        except UserError as error:
            yield str(error)


def _counted(run: RunConfig, model: CheckedConfig, folder: Path, most: int) -> list[tuple[str, str]]:
    """The steps and tokens of epochs, for which all rows are read where they can be."""
    from modelwright.training.build import counted

    try:
        steps, tokens = counted(run, model, folder)
    except UserError as error:
        return [("steps", f"not counted: {error}"), ("tokens", f"at most {most:,} a step")]
    return [("steps", f"{steps:,}"), ("tokens", f"at most {tokens:,}" if run.data.drop_last else f"{tokens:,}")]


def without_effect(run: RunConfig, model: CheckedConfig, ranks: int = 1) -> dict[str, str]:
    """What of the run's file and of the model's config changes nothing, each with the reason."""
    return {**model.fields_without_effect(), **run.fields_without_effect(ranks)}


def _show_without_effect(run: RunConfig, model: CheckedConfig, ranks: int) -> None:
    lines = without_effect(run, model, ranks)
    if lines:
        told = by_section(tuple(f"{name} ({reason})" for name, reason in lines.items()))
        write_lines(f"\nno effect: {', '.join(told)}")

"""``modelwright quantize``: a checkpoint with its matrices as integers, and what that costs in numbers and in loss."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.new_folder import check_new
from modelwright.checkpoints.quantize import QuantizeReport, quantize
from modelwright.checkpoints.quantized_model import quantize_model, settings_for
from modelwright.cli.calibration import read_passes
from modelwright.cli.console import errors, write
from modelwright.cli.held_out import HeldOut, held_out_loss, read_texts
from modelwright.errors import RequestError
from modelwright.serving.load import load
from modelwright.serving.names import model_path
from modelwright.serving.quiet import quieten_libraries


@dataclass(frozen=True)
class QuantizeOptions:
    """The options of ``modelwright quantize``, named as there."""

    model: str
    out: Path
    method: str = "int8"
    group: int | None = None
    symmetric: bool = False
    keep_head: bool = True
    max_shard_size: str = "5GB"
    calibrate: Path | None = None
    eval: Path | None = None
    device: str = "auto"


def run_quantize(options: QuantizeOptions) -> None:
    """Quantize, and say on stdout what was written and how far it is from what was given."""
    quieten_libraries()
    source = model_path(options.model)
    texts = None if options.eval is None else read_texts(options.eval.expanduser())
    if texts is not None and find_checkpoint(source).tokens_are_colours:
        raise RequestError(f"--eval needs a model that reads text, and the tokens of {options.model} are colours")
    size, name = options.max_shard_size, os.path.basename(options.model.rstrip("/"))
    calibrated = None if options.calibrate is None else _calibrated(source, options.calibrate.expanduser(), options)
    with _bar(f"quantizing {name}", DownloadColumn()) as bar:
        report = quantize(
            source,
            options.out.expanduser(),
            options.method,
            group=options.group,
            symmetric=options.symmetric,
            keep_head=options.keep_head,
            max_shard_size=int(size) if size.isdecimal() else size,
            calibrated=calibrated,
            progress=None if bar is None else lambda _, done, total: bar(done, total),
        )
    write(summary(options.out, report) + "\n")
    if texts is not None:
        before = _measured(source, options.device, texts)
        after = _measured(options.out.expanduser(), options.device, texts)
        write(compared(before, after, options.method) + "\n")


def _calibrated(source: str | Path, file: Path, options: QuantizeOptions) -> Any:
    """The model rounded by what it meets in a file; says on stdout how much that was."""
    check_new(options.out.expanduser().absolute())
    how = options.method, options.group, options.keep_head, options.symmetric
    if settings_for(*how, None).weights != "int4":
        raise RequestError(f"--calibrate is for int4, and --method is {options.method}, which loses next to nothing")
    loaded = load(source, device=options.device)
    passes = read_passes(file, loaded)
    with _bar("calibrating", MofNCompleteColumn()) as bar:
        model = quantize_model(loaded.model, *how, calibration=passes.batches, progress=bar)
    write(f"calibrated on {'' if passes.whole else 'the first '}{passes.tokens:,} tokens of {file}\n")
    return model


def summary(out: Path, report: QuantizeReport) -> str:
    """What was written, and how far the rounded matrices are from what they were."""
    files = "1 file" if report.shards == 1 else f"{report.shards} files"
    share = report.bytes / report.source_bytes
    worst = max(report.errors, key=report.errors.__getitem__)
    return (
        f"{out}: {report.tensors} tensors, {report.bytes / 1e6:.1f} MB in {files}, {share:.0%} of the source\n"
        f"relative error of {len(report.errors)} matrices: mean {mean(report.errors.values()):.4f}, "
        f"largest {report.errors[worst]:.4f} ({worst})"
    )


def compared(before: tuple[str, HeldOut], after: tuple[str, HeldOut], method: str) -> str:
    """Loss and perplexity of both checkpoints, and the difference."""
    (dtype, given), (_, stored) = before, after
    change = stored.perplexity / given.perplexity - 1
    return (
        f"held-out loss over {given.tokens:,} tokens: {dtype} {given.loss:.4f} (perplexity {given.perplexity:.3f}), "
        f"{method} {stored.loss:.4f} (perplexity {stored.perplexity:.3f}): {stored.loss - given.loss:+.4f} "
        f"(perplexity {change:+.2%})"
    )


def _measured(folder: str | Path, device: str, texts: list[str]) -> tuple[str, HeldOut]:
    loaded = load(folder, device=device)
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    return dtype, held_out_loss(loaded.model, loaded.tokenizer, texts)


@contextmanager
def _bar(name: str, how_much: ProgressColumn) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that is told what is done and how much there is, gone in the end; none where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), how_much, TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)

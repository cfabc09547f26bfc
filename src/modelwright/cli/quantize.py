"""``modelwright quantize``: a checkpoint with its matrices as integers, and what that costs in numbers and in loss."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import QuantizeReport, quantize
from modelwright.checkpoints.shards import Progress as QuantizeProgress
from modelwright.cli.console import errors
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
    eval: Path | None = None
    device: str = "auto"


def run_quantize(options: QuantizeOptions) -> None:
    """Quantize, and say on stdout what was written and how far it is from what was given."""
    quieten_libraries()
    source = model_path(options.model)
    texts = None if options.eval is None else read_texts(options.eval.expanduser())
    if texts is not None and find_checkpoint(source).tokens_are_colours:
        raise RequestError(f"--eval needs a model that reads text, and the tokens of {options.model} are colours")
    size = options.max_shard_size
    with _bar(os.path.basename(options.model.rstrip("/"))) as progress:
        report = quantize(
            source,
            options.out.expanduser(),
            options.method,
            group=options.group,
            symmetric=options.symmetric,
            keep_head=options.keep_head,
            max_shard_size=int(size) if size.isdecimal() else size,
            progress=progress,
        )
    print(summary(options.out, report), flush=True)
    if texts is not None:
        before = _measured(source, options.device, texts)
        after = _measured(options.out.expanduser(), options.device, texts)
        print(compared(before, after, options.method))


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
def _bar(name: str) -> Iterator[QuantizeProgress | None]:
    """A bar of the bytes written, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("quantizing {task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda _, done, total: bars.update(task, completed=done, total=total)

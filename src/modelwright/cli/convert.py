"""``modelwright convert``: one checkpoint folder into another, with a bar while it works and a report at its end."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from modelwright.checkpoints.conversion_source import Dropped
from modelwright.checkpoints.convert import Report, convert
from modelwright.checkpoints.shards import Progress as ConvertProgress
from modelwright.cli.console import errors, write
from modelwright.serving.names import model_path, user_path
from modelwright.serving.quiet import quieten_libraries

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class ConvertOptions:
    """The options of ``modelwright convert``, named as there; None is one that was not given."""

    src: str
    dst: Path
    to: str | None = None
    qkv_concat: bool | None = None
    num_key_value_heads: int | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    allow_pickle: bool = False


def run_convert(options: ConvertOptions) -> None:
    """Convert, and say on stdout what the new folder holds."""
    quieten_libraries()
    size = options.max_shard_size
    with _bar(os.path.basename(options.src.rstrip("/"))) as progress:
        report = convert(
            model_path(options.src),
            user_path(options.dst),
            to=options.to,
            qkv_concat=options.qkv_concat,
            num_key_value_heads=options.num_key_value_heads,
            dtype=options.dtype,
            max_shard_size=int(size) if size.isdecimal() else size,
            allow_pickle=options.allow_pickle,
            progress=progress,
        )
    write(summary(options.dst, report) + "\n")


def summary(dst: Path, report: Report) -> str:
    """The closing report: what was written, then what was dropped and why, layers counted together."""
    files = "1 file" if report.shards == 1 else f"{report.shards} files"
    lines = [f"{dst}: {report.tensors} tensors, {_amount(report.bytes)} in {files}"]
    lines += [f"dropped {name}: {reason}" for name, reason in _together(report.dropped)]
    lines += report.notes
    return "\n".join(lines)


def _together(dropped: tuple[Dropped, ...]) -> Iterator[tuple[str, str]]:
    """Names that differ only in their numbers as one, ``N`` in the numbers' place."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in dropped:
        groups.setdefault((LAYER.sub("N", entry.name), entry.reason), []).append(entry.name)
    for (pattern, reason), names in groups.items():
        yield (names[0] if len(names) == 1 else f"{pattern} ({len(names)} tensors)"), reason


def _amount(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


@contextmanager
def _bar(name: str) -> Iterator[ConvertProgress | None]:
    """A bar of the bytes written, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("converting {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda _, done, total: bars.update(task, completed=done, total=total)

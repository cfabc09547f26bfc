"""``modelwright checkpoint``: what a run's folder holds, whether it is whole, and one of it as others load it."""

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import typer

from modelwright.cli.console import say, write
from modelwright.cli.exit_status import FAILED
from modelwright.cli.tables import write_table
from modelwright.errors import CheckpointError, RequestError
from modelwright.serving.names import model_path, user_path
from modelwright.serving.quiet import quieten_libraries
from modelwright.training.checkpoints.saved import Saved, found_in, step_name


@dataclass(frozen=True)
class ExportOptions:
    """The options of ``modelwright checkpoint export``, named as there."""

    output: Path
    out: Path
    step: int | None = None
    to: str = "hf"
    dtype: str | None = None
    format: str | None = None
    source: str | None = None
    max_shard_size: str = "5GB"


def run_list(output: Path, as_json: bool) -> None:
    """Print a table of the checkpoints, or a JSON list of objects."""
    rows = [_row(entry) for entry in checkpoints_of(user_path(output))]
    if as_json:
        write(json.dumps(rows, indent=2) + "\n")
        return
    table = [(f"{row['step']}", row["written"], _amount(row["bytes"]), row["state"]) for row in rows]
    write_table(table, ("step", "written", "size", "state"), left=(1, 3))


def run_verify(output: Path, step: int | None) -> None:
    """Read every file of the checkpoints and say of each whether it is whole; status 1 where one is not."""
    broken = 0
    for entry in _of_step(checkpoints_of(user_path(output)), step):
        try:
            saved = _whole(entry)
            saved.verify()
        except CheckpointError as error:
            broken += 1
            write(f"broken  {error}\n")
        else:
            write(f"whole   {saved.folder}: {len(saved.manifest.files)} files, {_amount(saved.manifest.size)}\n")
    if broken:
        raise typer.Exit(FAILED)


def run_export(options: ExportOptions) -> None:
    """Write the newest whole checkpoint, or that of a step, and say on stdout what was written."""
    from modelwright.training.checkpoints.export import export  # imports transformers

    quieten_libraries()
    saved = _chosen(checkpoints_of(user_path(options.output)), options.step)
    run, base = saved.run(), Path(saved.facts().get("base", "."))
    model = run["model"]
    size = options.max_shard_size
    kind = export(
        saved,
        user_path(options.out),
        source=model_path(options.source) if options.source is not None else _from(base, model.get("path")),
        adapter=None if model.get("adapter") is None else base / model["adapter"],
        processor=None if model.get("processor") is None else base / user_path(model["processor"]),
        format=options.format,
        dtype=options.dtype,
        to=options.to,
        max_shard_size=int(size) if size.isdecimal() else size,
    )
    write(f"{options.out}: the {kind} of step {saved.step}\n")


def checkpoints_of(output: Path) -> list[Saved | tuple[Path, CheckpointError]]:
    """What the ``output`` of a run, its folder of checkpoints or one checkpoint holds, in the order of writing.

    Raises:
        RequestError: there is no checkpoint.
    """
    entries = found_in(output)
    if not entries and not os.path.isdir(output):
        _refuse(f"there is no folder {output}")
    if not entries:
        _refuse(f"{output} holds no checkpoint: name the output of a run")
    return entries


def _of_step(entries: list[Any], step: int | None) -> list[Any]:
    chosen = [entry for entry in entries if step is None or _folder(entry).name == step_name(step)]
    if not chosen:
        steps = ", ".join(str(int(_folder(entry).name[5:])) for entry in entries)
        _refuse(f"STEP must be one of {steps}, got {step}")
    return chosen


def _chosen(entries: list[Any], step: int | None) -> Saved:
    """The last whole checkpoint, of a step if one is named; says on stderr which are broken."""
    reason: CheckpointError | None = None
    for entry in reversed(_of_step(entries, step)):
        try:
            saved = _whole(entry)
            saved.verify()
        except CheckpointError as error:
            reason = error
            say(f"not used: {error}")
        else:
            return saved
    assert reason is not None
    raise reason


def _whole(entry: Any) -> Saved:
    if isinstance(entry, Saved):
        return entry
    raise entry[1]


def _row(entry: Any) -> dict[str, Any]:
    folder = _folder(entry)
    try:
        saved = _whole(entry)
        saved.verify(hashes=False)
        size, state = saved.manifest.size, "whole"
    except CheckpointError as error:
        size, state = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), f"broken: {error}"
    written = datetime.fromtimestamp(folder.stat().st_mtime).isoformat(" ", "seconds")
    return {"step": int(folder.name[5:]), "folder": str(folder), "written": written, "bytes": size, "state": state}


def _folder(entry: Any) -> Path:
    return entry.folder if isinstance(entry, Saved) else entry[0]


def _from(base: Path, name: str | None) -> str | Path | None:
    """Where a run found the model that it began with."""
    if name is None:
        return None
    relative = base / user_path(name)
    return relative if os.path.exists(relative) else model_path(name)


def _amount(nbytes: int) -> str:
    return next(
        (f"{nbytes / size:.1f} {unit}" for unit, size in (("GB", 1e9), ("MB", 1e6)) if nbytes >= size),
        f"{nbytes / 1e3:.1f} kB",
    )


def _refuse(reason: str) -> NoReturn:
    raise RequestError(reason)

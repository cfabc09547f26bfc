"""``run.json``: what a run is, said once: what was typed, versions, the commit, its config, layout and parts."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from modelwright.training.report.metrics_file import as_json
from modelwright.training.report.protocols import RunFacts

NAME = "run.json"
_PACKAGES = ("modelwright", "torch", "transformers", "numpy", "safetensors", "tokenizers")


def write_run_file(folder: Path, facts: RunFacts) -> None:
    """Write the file whole; the one of a run that is continued keeps what it began with, and adds a ``continued``."""
    path, said = folder / NAME, as_json(run_object(facts))
    if facts.done:
        first = _read(path)
        if first is not None:
            again = {"done": facts.done, "command": said["command"], "versions": said["versions"]}
            said = first | {"continued": [*first.get("continued", ()), again | {"commit": said["commit"]}]}
    part = path.with_name(f".{NAME}.part")
    part.write_text(json.dumps(said, indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)


def run_object(facts: RunFacts) -> dict[str, Any]:
    """The object of the file."""
    return {
        "command": list(facts.command),
        "versions": versions(),
        "commit": commit_of(Path.cwd()),
        "device": device_name(facts.device),
        "dtype": facts.dtype,
        "threads": torch.get_num_threads(),
        "steps": facts.steps,
        "layout": dict(facts.layout),
        "parameters": [dict(row) for row in facts.parameters],
        "data": [dict(row) for row in facts.data],
        "config": dict(facts.config),
    }


def versions() -> dict[str, str]:
    """Of Python, of this package, and of those that it computes with."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"system": f"{sys.platform} {platform.machine()}"}


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out where the run is started, ``+`` behind it where files differ; None outside git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: str) -> str:
    """As its maker calls it, where torch knows."""
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

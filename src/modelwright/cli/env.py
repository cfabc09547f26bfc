"""``modelwright env``: versions, the machine, which backend computes what and why, and whether kernels are right."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from modelwright.cli.console import write
from modelwright.cli.tables import write_lines, write_table
from modelwright.cli.terminal import kernels_compiling
from modelwright.engine.check import Replayed, replayed
from modelwright.engine.machine_memory import memory_limit
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.check import Compared, Computed, compared, computed, refused

PACKAGES = ("modelwright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "triton", "onnxruntime")
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
)
"""What the kernels, or torch's, make use of, as Linux names it on x86."""
ARM_FEATURES = ("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2")
WRONG = 1
"""The exit status where a kernel differs from its reference."""


@dataclass(frozen=True)
class Environment:
    """What a machine has, and who computes what on it."""

    versions: dict[str, str]
    machine: dict[str, Any]
    kernels: dict[str, str]
    operations: list[Computed]


def run_env(check: bool, as_json: bool) -> int:
    """Print the environment, or the comparison; returns the exit status."""
    with kernels_compiling():
        devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
        if check:
            rows = [row for device in devices for row in compared(device)]
            passes = {str(device): replayed(device) for device in devices if _captures(device)}
            wrong = [reason for device in devices for reason in refused(device)]
            (_print_check_json if as_json else _print_check)(rows, passes, wrong)
            return 0 if not wrong and all(one.right for one in (*rows, *passes.values())) else WRONG
        found = environment(devices)
    if as_json:
        write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        _print_environment(found)
    return 0


def environment(devices: list[torch.device]) -> Environment:
    """The environment of this process, with the operations on each of some devices."""
    state = {"cpu": kernels.reason() or f"compiled, several rows of bf16 by {kernels.unit().name.lower()}"}
    state["triton"] = gpu_kernels.reason() or ("ready" if len(devices) > 1 else "there is no GPU")
    operations = [one for device in devices for one in computed(device)]
    return Environment(dict(_versions()), _machine(), state, operations)


def _captures(device: torch.device) -> bool:
    """Whether an engine would record or capture decodes on a device."""
    return device.type == "cuda" or kernels.available()


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _machine() -> dict[str, Any]:
    limit = memory_limit()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "features": _features(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": None if limit is None else round(limit / 2**30, 1),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    }


def _processor() -> str:
    said = _cpuinfo()
    return said.get("model name") or platform.processor() or platform.machine()


def _features() -> list[str]:
    said = _cpuinfo()
    flags = set(said.get("flags", said.get("Features", "")).split())
    return [feature for feature in (*FEATURES, *ARM_FEATURES) if feature in flags]


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _print_environment(found: Environment) -> None:
    facts = {**found.versions, **{name: _shown(value) for name, value in found.machine.items()}}
    facts |= {f"{name} kernels": state for name, state in found.kernels.items()}
    write_table(list(facts.items()), left=(0, 1))
    write_lines("")
    rows = []
    for one in found.operations:  # torch can compute all of them
        others = "; ".join(f"{name}: {reason}" for name, reason in one.others.items() if name != "torch")
        rows.append((one.op, one.device, one.backend, others))
    write_table(rows, ("operation", "device", "computed by", "and not by"), left=(0, 1, 2, 3))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "not known" if value is None else str(value)


def _print_check(rows: list[Compared], passes: dict[str, Replayed], wrong: list[str]) -> None:
    table = [
        (row.op, row.backend, row.device, row.dtype, f"{row.worst:.1e}", f"{row.allowed:.1e}",
         "" if row.right else "WRONG") for row in rows
    ]  # fmt: skip
    for device, one in passes.items():
        said = one.refusal or ("" if one.right else "WRONG")
        table.append(("replayed decode", one.backend, device, "bfloat16", f"{one.worst:.1e}", "0", said))
    if table:
        headings = ("operation", "backend", "device", "type", "worst error", "allowed", "")
        write_table(table, headings, left=(0, 1, 2, 3, 6))
    else:
        write_lines(f"there are no kernels to compare here: {kernels.reason()}")
    for reason in wrong:
        write_lines(reason)


def _print_check_json(rows: list[Compared], passes: dict[str, Replayed], wrong: list[str]) -> None:
    replays = [{"device": device, **asdict(one), "right": one.right} for device, one in passes.items()]
    kept = [{**asdict(row), "right": row.right} for row in rows]
    write(json.dumps(_finite({"kernels": kept, "replays": replays, "refused": wrong}), indent=2) + "\n")


def _finite(value: Any) -> Any:
    """The same without numbers that JSON lacks, for which None stands."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value

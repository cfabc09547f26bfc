"""``modelwright export onnx``: a checkpoint as ONNX graphs, what is being done meanwhile, and a report at its end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from modelwright.cli.console import errors, write
from modelwright.export.onnx import Progress, Report, export_onnx
from modelwright.export.verify import Delta
from modelwright.serving.names import model_path, user_path
from modelwright.serving.quiet import quieten_libraries


@dataclass(frozen=True)
class ExportOptions:
    """The options of ``modelwright export onnx``, named as there."""

    model: str
    out: Path
    dtype: str = "float32"
    opset: int = 20
    draws: int = 12
    seed: int = 0


def run_export(options: ExportOptions) -> None:
    """Export, compare with PyTorch, and say on stdout what the new folder holds and how close it comes."""
    quieten_libraries()
    with _stages() as progress:
        report = export_onnx(
            model_path(options.model),
            user_path(options.out),
            options.dtype,
            opset=options.opset,
            draws=options.draws,
            seed=options.seed,
            progress=progress,
        )
    write(summary(report) + "\n")


def summary(report: Report) -> str:
    """The closing report: the graphs and their sizes, the largest difference of each output, the greedy tokens."""
    found = report.verification
    lines = [f"{report.folder}: {report.family} in {report.dtype}, opset {report.opset}"]
    for graph in report.graphs:
        beside = f" and {_amount(graph.weight_bytes)} of weights beside it" if graph.weight_bytes else ""
        lines.append(f"{graph.name}.onnx: {_amount(graph.graph_bytes)}{beside}")
    lines.append(f"max |onnxruntime - PyTorch| over {found.draws} drawn shapes:")
    width = max(len(delta.output) for delta in found.deltas)
    lines += [
        f"  {delta.output:{width}}  {delta.largest:.1e}  ({delta.shape}){_apart(delta)}"
        for delta in _shown(found.deltas)
    ]
    ties = f", {found.ties} of them between scores too close to tell apart" if found.ties else ""
    lines.append(f"greedy tokens: the same {found.greedy_tokens}{ties}")
    return "\n".join(lines)


def _apart(delta: Delta) -> str:
    """Where numbers are far apart, how far each is from float64."""
    if delta.from_float64 is None:
        return ""
    return "; from float64: onnxruntime {:.1e}, PyTorch {:.1e}".format(*delta.from_float64)


def _shown(deltas: tuple[Delta, ...]) -> Iterator[Delta]:
    """Every output but the cache's, whose largest difference stands for all layers' of that name."""
    caches: dict[str, Delta] = {}
    for delta in deltas:
        prefix, _, rest = delta.output.partition(".")
        if prefix != "present":
            yield delta
            continue
        name = f"present.*.{rest.partition('.')[2]}"
        if name not in caches or delta.largest > caches[name].largest:
            caches[name] = replace(delta, output=name)
    yield from caches.values()


def _amount(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


@contextmanager
def _stages() -> Iterator[Progress | None]:
    """What is being done, with a spinner while it lasts; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    with errors.status("") as status:
        yield lambda words: status.update(f"{words} ...")

"""A model to a folder of ONNX graphs, compared with PyTorch before the folder appears."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from modelwright.checkpoints.folder import find_checkpoint
from modelwright.configs.limits import LARGEST_SEED
from modelwright.errors import ConfigError
from modelwright.export.folder import check_ours, exported_folder, write_small_files
from modelwright.export.graphs import OnnxConfig, onnx_config_class
from modelwright.export.manifest import Manifest
from modelwright.export.trace import DEFAULT_OPSET, EXTERNAL_ABOVE, check_opset, write_graph
from modelwright.export.verify import Verification, evaluating, verify_onnx
from modelwright.hf.pretrained import ModelwrightPreTrainedModel, no_progress_bar
from modelwright.layers.bare import bare_weight
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear

DTYPES = ("float32", "float16")
MOST_DRAWS = 10_000
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Progress = Callable[[str], None]
"""Called at the start of each stage with a few words for it."""


@dataclass(frozen=True)
class GraphFile:
    """One graph as it was written: the bytes of its file, and of the weights beside it (0 if they are inside)."""

    name: str
    graph_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Report:
    """What an export made, and how close it comes to PyTorch."""

    folder: Path
    family: str
    dtype: str
    opset: int
    graphs: tuple[GraphFile, ...]
    verification: Verification


def export_onnx(
    source: str | Path | ModelwrightPreTrainedModel,
    out: str | Path,
    dtype: str | torch.dtype = "float32",
    *,
    opset: int = DEFAULT_OPSET,
    external_above: int = EXTERNAL_ABOVE,
    draws: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Write ``source`` as ONNX graphs with the cache as inputs and outputs, and compare them with PyTorch.

    The folder holds ``decoder.onnx`` and the family's other graphs, ``modelwright_onnx.json`` (what they are),
    ``config.json``, and the small files of ``source``. Exporting again gives the same bytes.

    Args:
        source: a checkpoint folder, a hub id, or a model of ours, which stays as it is.
        out: the folder to make; what an export wrote there before is replaced, and other files stay.
        dtype: of weights, products and cache: ``float32`` or ``float16``.
        opset: ONNX's version.
        external_above: bytes of weights above which they lie in a file beside the graph.
        draws: how many shapes to compare, drawn with ``seed``.
        progress: told what is being done.

    Raises:
        ConfigError: a model, a type or an opset that is not exported; a package that is missing.
        CheckpointError: ``source`` cannot be read, ``out`` not written, or onnxruntime and PyTorch disagree; nothing
            is left at ``out`` then but what was there before.
    """
    name, out, tell = _dtype_name(dtype), Path(out), progress or (lambda _: None)
    check_opset(opset)
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}", field="draws")
    if draws > MOST_DRAWS:
        raise ConfigError(f"draws must be at most {MOST_DRAWS}, got {draws}", field="draws")
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}", field="seed")
    _require_packages()
    check_ours(out)
    tell("reading the model")
    model, folder = _read(source, name)
    config = onnx_config_class(type(model))(model.config)
    _refuse_changed_layers(model)
    with exported_folder(out) as place, evaluating(model):
        cache_dtype, files = _cache_dtype(config, model), []
        with config.prepared(model):
            for graph in config.graphs(model, cache_dtype):
                tell(f"tracing the {graph.name} graph")
                files.append(write_graph(graph, place, opset, external_above))
        _manifest(config, files, name, cache_dtype, opset).write(place)
        write_small_files(place, model, folder)
        tell("comparing onnxruntime with PyTorch")
        verification = verify_onnx(place, model, draws, seed)
        graphs = tuple(_sizes(path) for path in files)
    return Report(out, config.family, name, opset, graphs, verification)


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        names = ", ".join(DTYPES)
        raise ConfigError(
            f"dtype must be one of {names}, which onnxruntime computes on a CPU; got {name}", field="dtype"
        )
    return name


def _require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{", ".join(missing)} not installed: pip install "modelwright[onnx]"')


def _read(source: str | Path | ModelwrightPreTrainedModel, dtype: str) -> tuple[Any, Path | None]:
    """The model in ``dtype`` on the CPU, and the folder it came from."""
    if isinstance(source, ModelwrightPreTrainedModel):
        return _as_type(source, dtype), None
    if isinstance(source, torch.nn.Module):
        raise ConfigError(f"{type(source).__name__} is no model of ours: give one of them, or a checkpoint folder")
    checkpoint = find_checkpoint(source)
    kind, folder = checkpoint.model_class, checkpoint.folder
    served = onnx_config_class(kind)
    config = checkpoint.config_class.from_pretrained(folder)
    config = checkpoint.config_class.from_pretrained(folder, **served.types(config, dtype))
    served(config)  # refused before the weights are read
    return kind.from_pretrained(folder, config=config, dtype=getattr(torch, dtype)), folder


def _refuse_changed_layers(model: torch.nn.Module) -> None:
    """Whole-number weights have no translation, and absorbed attention reads the weight of ``kv_b_proj`` alone."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedExperts):
            raise ConfigError(f"{name} is quantized: export the model whose weights are floating-point numbers")
        if name.endswith("kv_b_proj") and bare_weight(module) is None:
            kind = type(module).__name__
            raise ConfigError(
                f"{name} must be a plain Linear to be exported, and it is a {kind} or has hooks or a forward of its "
                "own: merge its adapter"
            )


def _as_type(model: Any, dtype: str) -> Any:
    """``model`` itself where it is in ``dtype`` on the CPU, else a copy that is."""
    fields = onnx_config_class(type(model)).types(model.config, dtype)
    said = model.config.to_dict()
    same = all(said[name] == value for name, value in fields.items() if not isinstance(value, dict))
    nested = any(isinstance(value, dict) for value in fields.values())
    if same and not nested and model.weight_dtype() == getattr(torch, dtype) and model.device.type == "cpu":
        return model
    if "checkpoint_name_or_path" in said:
        fields = fields | {"checkpoint_name_or_path": ""}
    config = type(model.config).from_dict(said, **fields)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    with no_progress_bar():
        return type(model).from_pretrained(None, config=config, state_dict=state, dtype=getattr(torch, dtype))


def _cache_dtype(config: OnnxConfig, model: Any) -> torch.dtype:
    """The type in which a pass leaves keys and values."""
    example = config.cache.random(1, 0, model.dtype, torch.Generator())
    content = config.content(model, torch.zeros(1, 1, dtype=torch.long))
    outputs = config.run(model, {**content, **example})
    return next(tensor.dtype for name, tensor in outputs.items() if name.startswith("present."))


def _manifest(config: OnnxConfig, files: list[Path], dtype: str, cache_dtype: torch.dtype, opset: int) -> Manifest:
    cache = config.cache
    return Manifest(
        family=config.family,
        graphs={path.stem: path.name for path in files},
        dtype=dtype,
        cache_dtype=str(cache_dtype).removeprefix("torch."),
        cache_layers=cache.layers,
        cache_parts=[asdict(part) for part in cache.parts],
        takes_mask=config.takes_mask,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        opset=opset,
    )


def _sizes(path: Path) -> GraphFile:
    weights = path.with_name(f"{path.name}.data")
    return GraphFile(path.stem, path.stat().st_size, weights.stat().st_size if weights.exists() else 0)

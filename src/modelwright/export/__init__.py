"""Models as ONNX graphs with their cache, and what runs such a folder without torch; each name imports its file at use.

``OnnxDecoder`` needs numpy and onnxruntime alone, so nothing here imports torch before a name that exports is used.
"""

from importlib import import_module
from typing import Any

from modelwright.families import Reference, families, resolve

_FILE_OF = {
    "OnnxDecoder": "runtime",
    "OnnxPictureDecoder": "picture_runtime",
    "OnnxConfig": "graphs",
    "Report": "onnx",
    "export_onnx": "onnx",
    "Verification": "verify",
    "verify_onnx": "verify",
}

__all__ = list(_FILE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import ``name`` from its file and keep it here (PEP 562); a family's ``OnnxConfig`` is found by its record."""
    if name in _FILE_OF:
        value = getattr(import_module(f"modelwright.export.{_FILE_OF[name]}"), name)
    elif name in (of_families := _onnx_configs()):
        value = resolve(of_families[name])
    else:
        names = ", ".join([*__all__, *of_families])
        raise AttributeError(f"module 'modelwright.export' has no attribute {name!r}; it has {names}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_onnx_configs()})


def _onnx_configs() -> dict[str, Reference]:
    """Each family's export by the name of its class."""
    references = [family.export for family in families() if family.export is not None]
    return {reference.partition(":")[2]: reference for reference in references}

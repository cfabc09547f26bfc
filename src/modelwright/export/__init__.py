"""Models as ONNX graphs with their cache, and what runs such a folder without torch; each name imports its file at use.

``OnnxDecoder`` needs numpy and onnxruntime alone, so nothing here imports torch before a name that exports is used.
"""

from importlib import import_module

_FILE_OF = {
    "OnnxDecoder": "runtime",
    "OnnxPictureDecoder": "picture_runtime",
    "DeepseekV2OnnxConfig": "deepseek",
    "DeepseekVLV2OnnxConfig": "deepseek",
    "ImageGPTOnnxConfig": "onnx_configs",
    "LlamaOnnxConfig": "onnx_configs",
    "OnnxConfig": "graphs",
    "Report": "onnx",
    "export_onnx": "onnx",
    "Verification": "verify",
    "verify_onnx": "verify",
}

__all__ = list(_FILE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import ``name`` from its file and keep it here (PEP 562)."""
    if name not in _FILE_OF:
        raise AttributeError(f"module 'modelwright.export' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"modelwright.export.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

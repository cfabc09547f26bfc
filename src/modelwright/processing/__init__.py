"""Text and pictures to arrays, and the model's words back to boxes; needs no model.

Each public name is imported from its module at first use, so that `modelwright.processing.pixels`, which needs numpy
and Pillow only, brings in no torch. ``__init__.pyi`` tells type checkers the same table.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "MAX_PIXELS": "images",
    "BoxConstraint": "box_constraint",
    "BoxGrammar": "box_grammar",
    "Grounding": "grounding",
    "GroundingReport": "grounding",
    "Pixels": "pixels",
    "ProcessedPrompt": "batching",
    "Skipped": "grounding_reader",
    "draw_groundings": "drawing",
    "fit_clusters": "palette",
    "format_grounding": "grounding",
    "load_image": "images",
    "pad_batch": "batching",
    "parse_grounding": "grounding",
    "parse_grounding_report": "grounding",
}

__all__ = [*_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import ``name`` from its module and keep it here, so that this function runs once a name (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'modelwright.processing' has no attribute {name!r}")
    value = getattr(import_module(f"modelwright.processing.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

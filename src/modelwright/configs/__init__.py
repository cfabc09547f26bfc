"""The checked base of every configuration and the parts that families share; no tensor code lives in this room.

Each public name is imported from its module at first use, so that `modelwright.configs.limits` brings in nothing heavy.
``__init__.pyi`` tells type checkers the same table.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CheckedConfig": "base",
    "MoEConfig": "moe",
    "ParallelConfig": "parallel",
    "RopeScaling": "rope",
    "RopeSettings": "rope",
}

__all__ = [*_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import ``name`` from its module and keep it here, so that this function runs once a name (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'modelwright.configs' has no attribute {name!r}")
    value = getattr(import_module(f"modelwright.configs.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

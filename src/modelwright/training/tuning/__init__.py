"""Which parts of a model train, at which rates, and whether by LoRA; adapters on disk."""

from modelwright.training.tuning.parts import parts_of
from modelwright.training.tuning.settle import Group, PartRow, Tuned, settle

__all__ = ["Group", "PartRow", "Tuned", "parts_of", "settle"]

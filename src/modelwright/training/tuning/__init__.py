"""Which parts of a model train, at which rates, and whether by LoRA; adapters on disk."""

from modelwright.layers.lora import lora_of
from modelwright.training.tuning.adapter import check_adapted, load_adapter, save_adapter
from modelwright.training.tuning.lora import add_lora, merge
from modelwright.training.tuning.parts import parts_of
from modelwright.training.tuning.settle import Group, PartRow, Tuned, settle

__all__ = [
    "Group",
    "PartRow",
    "Tuned",
    "add_lora",
    "check_adapted",
    "load_adapter",
    "lora_of",
    "merge",
    "parts_of",
    "save_adapter",
    "settle",
]

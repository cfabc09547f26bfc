"""Checkpoint folders: which family one holds, model and processor read from it together, one made into another."""

from modelwright.checkpoints.conversion_source import Dropped
from modelwright.checkpoints.convert import Report, convert
from modelwright.checkpoints.folder import Checkpoint, find_checkpoint
from modelwright.checkpoints.load import Loaded, load, pick_device
from modelwright.checkpoints.quantize import QuantizeReport, quantize

__all__ = [
    "Checkpoint",
    "Dropped",
    "Loaded",
    "QuantizeReport",
    "Report",
    "convert",
    "find_checkpoint",
    "load",
    "pick_device",
    "quantize",
]

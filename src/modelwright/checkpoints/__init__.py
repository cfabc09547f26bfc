"""Checkpoint folders: which family one holds, and model and processor read from it together."""

from modelwright.checkpoints.folder import Checkpoint, find_checkpoint
from modelwright.checkpoints.load import Loaded, load, pick_device

__all__ = ["Checkpoint", "Loaded", "find_checkpoint", "load", "pick_device"]

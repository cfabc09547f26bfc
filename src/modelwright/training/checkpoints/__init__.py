"""Checkpoints of a run: written whole or not at all, found again after any death, and turned into official folders.

A run's `output/checkpoints` holds a folder for each step that was kept: ``step-000200/`` with torch's distributed
checkpoint in ``state``, the run's config, its facts, and a manifest with the size and hash of each of these files.
"""

from modelwright.training.checkpoints.checkpoints import Checkpoints
from modelwright.training.checkpoints.failed import CheckpointsFailed
from modelwright.training.checkpoints.saved import Saved, saved_in
from modelwright.training.checkpoints.stopping import Asked, Stopping

__all__ = ["Asked", "Checkpoints", "CheckpointsFailed", "Saved", "Stopping", "saved_in"]

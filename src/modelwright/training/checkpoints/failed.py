"""The error after which a run cannot go on as it promised."""

from modelwright.errors import CheckpointError


class CheckpointsFailed(CheckpointError):
    """No checkpoint of a run can be read, or none can be written; training ends, and what is on disk stays there."""

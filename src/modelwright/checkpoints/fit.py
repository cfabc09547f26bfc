"""Whether the tensors in some files are those a model asks for; every misfit is named in one error."""

from collections.abc import Mapping

from modelwright.checkpoints.shards import TensorHeader, dtype_of
from modelwright.errors import CheckpointError

LISTED = 8


def check_fit(what: str, found: Mapping[str, TensorHeader], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a :class:`CheckpointError` that names what is missing, unexpected, misshapen or of no floating type.

    Args:
        what: the model, for the message.
        wanted: every tensor of the model and its shape.
    """
    both = [name for name in wanted if name in found]
    complaints = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "misshapen": [
            f"{name} ({list(found[name].shape)} in {found[name].shard.name}, and the config asks for "
            f"{list(wanted[name])})"
            for name in both
            if found[name].shape != wanted[name]
        ],
        "not of type F64, F32, F16 or BF16": [
            f"{name} ({found[name].dtype})" for name in both if dtype_of(found[name]) is None
        ],
    }
    parts = [f"{word} {_listed(names)}" for word, names in complaints.items() if names]
    if parts:
        raise CheckpointError(f"the checkpoint does not fit {what}: " + "; ".join(parts))


def _listed(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

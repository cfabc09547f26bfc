"""transformers' ``key_mapping``: names of a checkpoint's tensors rewritten before a model looks for its own."""

import re
from collections.abc import Mapping

from transformers.core_model_loading import WeightRenaming

from modelwright.checkpoints.shards import TensorHeader
from modelwright.errors import CheckpointError, ConfigError


def renamed(found: dict[str, TensorHeader], mapping: Mapping[str, str] | None) -> dict[str, TensorHeader]:
    """The headers under the names that ``mapping`` makes of theirs.

    Args:
        mapping: regular expressions, each with what its first match in a name becomes (``\\1`` is its group); applied
            in order, each to what the one before has made. None renames nothing.

    Raises:
        ConfigError: ``mapping`` is no dict of texts, or holds what is no regular expression.
        CheckpointError: two tensors would have one name.
    """
    if mapping is None:
        return found
    renamings = _renamings(mapping)
    named: dict[str, TensorHeader] = {}
    for name, header in found.items():
        new = name
        for renaming in renamings:
            new, _ = renaming.rename_source_key(new)
        if new in named:
            raise CheckpointError(f"key_mapping makes {new} of two tensors: {named[new].name} and {name}")
        named[new] = header
    return named


def _renamings(mapping: Mapping[str, str]) -> list[WeightRenaming]:
    if not isinstance(mapping, Mapping) or not all(isinstance(each, str) for pair in mapping.items() for each in pair):
        raise ConfigError(f"key_mapping must be a dict of regular expressions to names, got {mapping!r}")
    try:
        return [WeightRenaming(source_patterns=old, target_patterns=new) for old, new in mapping.items()]
    except re.error as error:
        raise ConfigError(f"key_mapping holds what is no regular expression: {error}") from error

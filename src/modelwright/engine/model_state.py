"""`ModelState`, whether a model is what it was at the last look; it says so, and does nothing about it."""

import torch
from torch import nn

from modelwright.engine.contents import Contents
from modelwright.engine.fingerprint import Fingerprint
from modelwright.layers.bare import is_as_built, shows_its_state
from modelwright.ops.dispatch import only_numbers


class ModelState:
    """A model as it was at the last look; the first one sees a change.

    Attributes:
        version: counts the changes of what Python reads: modules, hooks, attributes, adapters, places of weights.
        records: whether the calls of a pass may be repeated without calling the modules again.
        shows: whether all that passes depend on can be seen. What a hook, or a module of somebody else's, reads may
            change without a trace.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._print: Fingerprint | None = None
        self.version, self.records, self.shows = 0, False, True

    def look(self, contents: bool = True) -> bool:
        """Whether anything has changed since the last look.

        Args:
            contents: whether to look at the numbers of weights too; a change of them that was passed over is seen by
                the next look that does, one of Python's state that was undone meanwhile is not.
        """
        if self._print is None or not self._print.holds():
            self.shows = shows_its_state(self._model)  # first, as it makes Python write annotations into classes
            self._print = Fingerprint.of(self._model)
            self._contents = Contents(self._print.tensors)
            self.records = self.shows and is_as_built(self._model) and _computes_alone()
            self.version += 1
            return True
        if contents and not self._contents.hold():
            self._contents = Contents(self._print.tensors)
            return True
        return False


def _computes_alone() -> bool:
    """Whether nobody casts or watches what torch computes here."""
    with torch.no_grad():
        return only_numbers(torch.empty(0))

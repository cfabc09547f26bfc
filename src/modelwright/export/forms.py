"""In whose form the graph of a decoder is written: ours, or that of optimum, whose programs then run it.

Names of tensors, axes and files, and which inputs choose positions and logits. Needs numpy alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from modelwright.errors import ConfigError

LOGITS_TO_KEEP = "logits_to_keep"
"""An input of the decoder, int64 ``[1]``: logits of the last n tokens only; 0 means all."""
POSITIONS = "position_ids"


@dataclass(frozen=True)
class GraphForm:
    """How a decoder is written.

    Attributes:
        name: what ``--names`` calls it.
        stem: the decoder's file without ``.onnx``.
        weights: what follows the file's name where the weights lie in a file beside it.
        past: the prefix of the names of cached tensors that come in.
        takes_positions: whether ``position_ids`` ``[batch, sequence]`` are an input; otherwise the graph counts them.
        chooses_logits: whether ``logits_to_keep`` is an input; otherwise every token has logits.
        axes: names of axes that are called otherwise than by us.
    """

    name: str
    stem: str
    weights: str
    past: str
    takes_positions: bool
    chooses_logits: bool
    axes: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, ours: str) -> str:
        """The name in this form of the tensor that we call ``ours``."""
        prefix, dot, rest = ours.partition(".")
        return f"{self.past}.{rest}" if dot and prefix == "past" else ours

    def axis(self, ours: str) -> str:
        """The name in this form of the axis that we call ``ours``."""
        return self.axes.get(ours, ours)

    def beside(self, batch: int, tokens: int, past: int, keep: int = 0) -> dict[str, np.ndarray]:
        """The inputs of a pass beside content, mask and past.

        Args:
            batch, tokens, past: the lengths of the pass; positions run from the past.
            keep: logits of this many last tokens, 0 being all; of no effect where the form has no such input.
        """
        made = {}
        if self.takes_positions:
            made[POSITIONS] = np.broadcast_to(np.arange(past, past + tokens), (batch, tokens))
        if self.chooses_logits:
            made[LOGITS_TO_KEEP] = np.array([keep])
        return made


MODELWRIGHT = GraphForm("modelwright", "decoder", ".data", "past", takes_positions=False, chooses_logits=True)
OPTIMUM = GraphForm(
    "optimum",
    "model",
    "_data",
    "past_key_values",
    takes_positions=True,
    chooses_logits=False,
    axes={
        "batch": "batch_size",
        "sequence": "sequence_length",
        "past": "past_sequence_length",
        "past + sequence": "past_sequence_length + sequence_length",
    },
)
FORMS = {form.name: form for form in (MODELWRIGHT, OPTIMUM)}


def form_called(name: str) -> GraphForm:
    """The form of that name; a ConfigError where there is none."""
    if name not in FORMS:
        raise ConfigError(f"names must be one of {', '.join(FORMS)}; got {name!r}", field="names")
    return FORMS[name]

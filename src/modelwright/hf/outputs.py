"""What a model's pass returns: transformers' outputs, whose cache goes by either of its names.

Build one with ``**of_cache(cache)``: the field's name differs between releases.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from modelwright.hf.cache_names import EitherCacheName
from modelwright.layers import Routing


@dataclass
class DecoderOutput(EitherCacheName, MoeModelOutputWithPast):
    """A decoder's output; ``aux_loss`` is the scaled balance loss of a training pass, otherwise None.

    ``routings`` are what its routers decided, by layer, where a caller asks for them.
    """

    router_logits: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None
    routings: tuple[Routing, ...] | None = None


@dataclass
class CausalOutput(EitherCacheName, MoeCausalLMOutputWithPast):
    """Logits and loss, of which ``aux_loss`` is a part; ``last_hidden_state`` where the config asks for it."""

    router_logits: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None


@dataclass
class ClassifierOutput(EitherCacheName, SequenceClassifierOutputWithPast):
    """Class scores; ``aux_loss`` is the balance part of ``loss``."""

    aux_loss: Tensor | None = None

"""Layers of a built model that store their weights in integers, in the place of those that compute with them.

Quantized are the projections of attention, feed-forwards and experts (stacks expert by expert). Left as they are:
embeddings, norms, biases, routers, what sees pictures, heads (unless asked for), and the latent's ``kv_b_proj``, whose
numbers attention multiplies with either side. Leaves out how rounding is done (``ops/weight_only.py``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelwright.configs.engine import QuantSettings
from modelwright.errors import ConfigError
from modelwright.layers import Experts, Linear
from modelwright.layers.linear import CastLinear, ColumnSlicedLinear, RowSlicedLinear
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.stored import Stored
from modelwright.ops.weight_only import RUN, quantise_int4, quantise_int8

HEAD = "lm_head"
KEPT = frozenset({"vision", "projector", "kv_b_proj", "shared_expert_gate", "score", HEAD})
"""Parts of module names whose matrices stay as they are; the head may be asked for."""
MATRICES = (Linear, nn.Linear, CastLinear, ColumnSlicedLinear, RowSlicedLinear, Conv1D, Experts)
"""Layers that compute a product with their weight; a model's ``own_matrices`` are its family's, beyond these."""
Rounding = Callable[[str, Tensor], Stored]
"""What rounds the weight ``[..., out, in]`` of a name: that of its layer, or of one of the stacks in it."""


@torch.no_grad()
def quantize_layers(model: Any, settings: QuantSettings) -> None:
    """Replace the matrices of ``model`` in place; those that are replaced already are passed over.

    On the meta device this gives the shapes of what a checkpoint holds.

    Raises:
        ConfigError: groups that do not divide a layer's inputs, or a head that is the embedding.
    """
    for name in matrices_of(model, settings):
        replace_layer(model, name, settings, partial(store, settings=settings))


def matrices_of(model: Any, settings: QuantSettings) -> dict[str, nn.Module]:
    """The layers of ``model`` that are to be replaced, by name.

    Raises:
        ConfigError: a head that is to be, and is the embedding.
    """
    if settings.head and model.config.get_text_config().tie_word_embeddings:
        raise ConfigError("lm_head (True) needs tie_word_embeddings=False: a tied head is the embedding, which is kept")
    kinds = (*MATRICES, *model.own_matrices)
    return {
        name: module for name, module in model.named_modules() if type(module) in kinds and not _kept(name, settings)
    }


def replace_layer(model: nn.Module, name: str, settings: QuantSettings, rounding: Rounding) -> None:
    """Put what stores its weights in integers in the place of a layer of :func:`matrices_of`."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, _quantized(name, model.get_submodule(name), settings, rounding))


def store(name: str, weight: Tensor, settings: QuantSettings) -> Stored:
    """``[..., out, in]`` rounded to nearest; ``name`` is for the error."""
    if settings.weights == "int8":
        return quantise_int8(weight)
    check_inputs(name, weight.shape[-1], settings)
    return quantise_int4(weight, settings.group, offset=not settings.symmetric)


def check_inputs(name: str, inputs: int, settings: QuantSettings) -> None:
    """Raise a :class:`ConfigError` unless int4's groups divide the inputs of the weight called ``name``."""
    if inputs % max(settings.group, RUN):
        raise ConfigError(
            f"the inputs of {name} ({inputs}) must be divisible by group_size ({settings.group}) and by {RUN}, whose "
            "int4 steps share a run of bytes"
        )


def _kept(name: str, settings: QuantSettings) -> bool:
    parts = name.split(".")
    return not KEPT.isdisjoint(parts) and not (settings.head and parts[-1] == HEAD)


def _quantized(name: str, module: Any, settings: QuantSettings, rounding: Rounding) -> nn.Module:
    dynamic = settings.activations == "int8"
    if isinstance(module, Experts):
        made: nn.Module = QuantizedExperts(
            rounding(f"{name}.gate_up_proj", module.gate_up_proj),
            rounding(f"{name}.down_proj", module.down_proj),
            module.act,
            module.gated,
            module.names,
            module.dropout,
            module.compute,
            dynamic,
        )
    else:
        compute = module.compute if isinstance(module, CastLinear) else None
        made = QuantizedLinear(rounding(name, _rows(module)), module.bias, compute, dynamic)
    return made.train(module.training)


def _rows(module: Any) -> Tensor:
    """A layer's matrix as ``[out, in]``."""
    if isinstance(module, Conv1D):
        return module.weight.t().contiguous()
    return module.weight

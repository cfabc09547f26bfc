"""One token after another with little around the arithmetic: cached keys and values written in place, weights packed.

Leaves out which token is taken (``imagegpt_sampling.py``). The blocks' equations stand in ``imagegpt_parts.py``, which
this file must equal; a model that is more than its weights (adapters, quantised or spread weights) is run itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Conv1D, DynamicCache, StaticCache

from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.imagegpt.parts import ColourHead, ResidualProjection
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.packed_linear import Product, packed_product
from modelwright.ops.slots import Slots, make_slots

Feed = Callable[[Tensor], Tensor]
"""New tokens ``[batch, tokens]`` to the scores after the last of them, ``[batch, colours]``; the past is remembered."""


def feeder(model: ImageGPTForCausalImageModeling, batch: int, slots: int) -> Feed:
    """What continues ``batch`` rows of at most ``slots`` tokens with ``model``, the fastest way that is exact."""
    return LeanDecoder(model, batch, slots) if is_plain(model) else _through_the_model(model, slots)


def is_plain(model: ImageGPTForCausalImageModeling) -> bool:
    """Whether the weights alone say what the model does: no adapter, no quantised weight, one device, no autocast."""
    if type(model) is not ImageGPTForCausalImageModeling or model.device.type == "meta":
        return False
    if torch.is_autocast_enabled(model.device.type):
        return False
    own = (nn.Embedding, ColourHead, Conv1D, ResidualProjection)
    body: Any = model.transformer
    projections = [body.wte, body.wpe, model.lm_head]
    for block in body.h:
        projections += [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]
    if any(type(projection) not in own for projection in projections):
        return False
    parameters = list(model.parameters())
    one_kind = {(parameter.device, parameter.dtype) for parameter in parameters} == {(model.device, model.dtype)}
    return one_kind and all(type(p) is nn.Parameter for p in parameters)


def _through_the_model(model: ImageGPTForCausalImageModeling, slots: int) -> Feed:
    cache = StaticCache(model.config, max_cache_len=slots)
    return lambda tokens: model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


@dataclass(frozen=True)
class LeanBlock:
    """A block's weights, ready to be multiplied, and its slots."""

    ln_1: Tensor
    c_attn: Product
    slots: Slots
    attn_proj: Product
    ln_2: Tensor
    c_fc: Product
    act: Callable[[Tensor], Tensor]
    mlp_proj: Product


class LeanDecoder:
    """A :data:`Feed`: the first tokens by the model, each later one by its weights alone.

    Weights are copied when it is built: changes after that do not count.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, batch: int, slots: int):
        config, body = model.config, cast(Any, model.transformer)
        self.model, self.known = model, 0
        self.tokens, self.positions, self.ln_f = body.wte.weight, body.wpe.weight, body.ln_f.weight
        self.eps = config.layer_norm_epsilon
        self.by_kernel = kernels.serves_rows(self.tokens, self.ln_f)
        self.lm_head = packed_product(model.lm_head.weight[: model.lm_head.out_features].t(), None)
        # reorder_and_upcast_attn: products in fp32, for which the slots are kept in it
        kept = torch.float32 if config.reorder_and_upcast_attn else model.dtype
        rows = (batch, config.n_head, config.head_dim, slots)
        self.blocks = [
            self._block(block, make_slots(*rows, block.attn.scale, kept, model.dtype, model.device)) for block in body.h
        ]

    def _block(self, block: Any, slots: Slots) -> LeanBlock:
        attn, mlp = block.attn, block.mlp
        return LeanBlock(
            ln_1=block.ln_1.weight,
            c_attn=packed_product(attn.c_attn.weight, attn.c_attn.bias),
            slots=slots,
            attn_proj=packed_product(attn.c_proj.weight, attn.c_proj.bias),
            ln_2=block.ln_2.weight,
            c_fc=packed_product(mlp.c_fc.weight, mlp.c_fc.bias),
            act=mlp.act.forward,
            mlp_proj=packed_product(mlp.c_proj.weight, mlp.c_proj.bias),
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 1 and self.known == 0:
            return self._start(tokens)
        logits = [self._step(token) for token in tokens.unbind(1)]
        return logits[-1]

    def _start(self, tokens: Tensor) -> Tensor:
        """The whole prompt at once, by the model; what it caches is taken over."""
        cache: Any = DynamicCache()
        logits = self.model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        self.known = tokens.shape[1]
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            block.slots.fill(layer.keys, layer.values)
        return logits

    def _step(self, tokens: Tensor) -> Tensor:
        """``[batch]`` to ``[batch, colours]``."""
        x = F.embedding(tokens, self.tokens) + self.positions[self.known]
        for block in self.blocks:
            joined = block.c_attn(self._norm(x, block.ln_1), None)
            x = block.attn_proj(block.slots.attend(joined, self.known), x)
            x = block.mlp_proj(block.act(block.c_fc(self._norm(x, block.ln_2), None)), x)
        self.known += 1
        return self.lm_head(self._norm(x, self.ln_f), None)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.by_kernel:
            return kernels.rms_norm(x, weight, self.eps, once=True)
        return F.rms_norm(x, weight.shape, weight, self.eps)

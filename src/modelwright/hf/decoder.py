"""What decoders share around their layers: which embeddings and cache a pass uses, router biases, losses.

Leaves out the layers and the forward passes, which each family writes itself.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from modelwright.attention import AttentionBackend
from modelwright.configs.rope import RopeSettings
from modelwright.errors import ConfigError, RequestError
from modelwright.hf.balance import move_bias
from modelwright.layers import Router


class RouterBiases:
    """The bias rule of ``noaux_tc`` routers, for a model whose config says how fast they move."""

    @abstractmethod
    def router_bias_rate(self) -> float:
        """By how much a step moves a bias."""

    def update_router_bias(self) -> None:
        """Move every ``noaux_tc`` bias by the config's rate times ``sign(mean load - load)`` and forget the loads.

        Call it once per optimizer step (or let :meth:`update_router_bias_with` do so): loads are summed over the
        training passes since the last call and over the ranks of the default process group.
        """
        assert isinstance(self, nn.Module)
        for layer in self.modules():
            if isinstance(layer, Router) and layer.method == "noaux_tc":
                move_bias(layer, self.router_bias_rate())

    def update_router_bias_with(self, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
        """Run :meth:`update_router_bias` after each ``optimizer.step()``; the handle removes the hook."""
        return optimizer.register_step_post_hook(lambda *_: self.update_router_bias())


def embed(table: nn.Module, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """``[batch, tokens, dim]`` from token ids or as given; a :class:`RequestError` unless it is one of the two."""
    if input_ids is not None and inputs_embeds is None:
        return table(input_ids)
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise RequestError("give input_ids or inputs_embeds, and not both")


def pass_cache(
    given: Cache | None, wanted: bool, attention: AttentionBackend | None, layers: Iterable[nn.Module]
) -> Cache | None:
    """The cache of a pass: the one given, a new one if it is to be returned, or None.

    Layers that recompute themselves in training would append to a cache again, so they get none.
    """
    if any(layer.training and layer.gradient_checkpointing for layer in layers):
        if given is not None and given.get_seq_length():
            raise RequestError("gradient checkpointing recomputes layers and cannot continue a cache")
        return None
    return DynamicCache() if given is None and wanted and attention is None else given


def rope_extension(rope: RopeSettings) -> dict[str, Any]:
    """What a rotary embedding is told of the extension beyond the trained context; nothing for plain RoPE."""
    scaling = rope.scaling
    if scaling is None:
        return {}
    return {
        "kind": scaling.kind,
        "factor": scaling.factor,
        "trained_length": scaling.original_max_position_embeddings or rope.max_position_embeddings,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
    }


def check_kept(labels: Tensor | None, logits_to_keep: int | Tensor) -> None:
    """Raise a :class:`RequestError` where labels come with fewer than all logits."""
    every_token = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if labels is not None and not every_token:
        raise RequestError(f"labels need the logits of every token: logits_to_keep must be 0, not {logits_to_keep}")


def kept_tokens(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The tokens of ``hidden`` ``[batch, tokens, dim]`` that get logits: the last n (0: all), or those at indices."""
    return hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


def with_balance(
    loss: Tensor, aux_loss: Tensor | None, counted: Tensor, num_items: Tensor | int | None
) -> tuple[Tensor, Tensor | None]:
    """The loss and its balance part.

    Where the loss is a sum over ``num_items`` labels of several passes, the part gets the share of the ``counted``
    labels of this one.
    """
    if aux_loss is None:
        return loss, None
    if num_items is not None:
        aux_loss = aux_loss * counted / num_items
    return loss + aux_loss, aux_loss


def check_expert_ranks(ranks: int) -> None:
    """Raise a :class:`ConfigError` where experts are to be spread over more ranks than there are."""
    if ranks == 1:
        return
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size() if ready else 0
    if world == 0 or world % ranks:
        state = f"the process group has {world} ranks" if ready else "no process group is initialised"
        raise ConfigError(
            f"ep_size ({ranks}) needs an initialised process group whose size is a multiple of it; {state}"
        )

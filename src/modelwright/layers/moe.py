"""Mixture of experts (arXiv:2401.06066): a router picks, stacked experts compute, a dispatcher moves the tokens.

Balance losses and loads are returned, not kept: the model sums them. Parallel experts swap the dispatcher only.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.layers.slots import Slot
from modelwright.ops.experts import Activation, grouped_experts
from modelwright.ops.routing import (
    batch_balance_loss,
    biased_topk,
    expert_load,
    greedy_topk,
    group_limited_topk,
    sequence_balance_loss,
)


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided.

    ``weights`` (fp32, as applied) and ``chosen`` experts are ``[tokens, top_k]``; ``scores`` ``[tokens, experts]`` are
    those of all experts before any bias.
    """

    weights: Tensor
    chosen: Tensor
    scores: Tensor

    def balance_loss(self, batch: int, per_sequence: bool) -> Tensor:
        """The unscaled balance loss over ``batch`` sequences of equal length: one number, see ``ops/routing.py``."""
        if per_sequence:
            return sequence_balance_loss(self.scores, self.chosen, batch)
        return batch_balance_loss(self.scores, self.chosen)

    def load(self) -> Tensor:
        """How many choices fell on each expert: fp32 ``[experts]``."""
        return expert_load(self.chosen, self.scores.shape[-1])


class Router(nn.Module):
    """Scores experts in fp32 and picks ``top_k`` of them.

    Args:
        method: ``greedy``, ``group_limited_greedy`` or ``noaux_tc``; see ``ops/routing.py``.
        scoring: ``softmax`` or ``sigmoid``.
        groups, top_groups: of the grouped methods, how many groups there are and how many a token may choose from.
        normalise: divide the weights by their sum (when ``top_k > 1``).
        scaling: multiplies the weights, after normalising too.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        method: str = "greedy",
        scoring: str = "softmax",
        groups: int = 1,
        top_groups: int = 1,
        normalise: bool = False,
        scaling: float = 1.0,
    ):
        super().__init__()
        self.top_k, self.method, self.scoring = top_k, method, scoring
        self.groups, self.top_groups = groups, top_groups
        self.normalise, self.scaling = normalise, scaling
        self.weight = nn.Parameter(torch.empty(experts, dim))
        if method == "noaux_tc":
            self.e_score_correction_bias: Tensor
            self.register_buffer("e_score_correction_bias", torch.zeros(experts))
            self.load: Tensor  # choices since the bias last moved; the model adds to it in training
            self.register_buffer("load", torch.zeros(experts, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Routing:
        """``[tokens, dim]`` to the routing of those tokens."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        scores = logits.softmax(dim=-1) if self.scoring == "softmax" else logits.sigmoid()
        weights, chosen = self._choose(scores)
        if self.normalise and self.top_k > 1:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(weights * self.scaling, chosen, scores)

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        if self.method == "noaux_tc":
            bias = self.e_score_correction_bias.float()
            return biased_topk(scores, bias, self.top_k, self.groups, self.top_groups)
        if self.method == "group_limited_greedy":
            return group_limited_topk(scores, self.top_k, self.groups, self.top_groups)
        return greedy_topk(scores, self.top_k)


class Experts(nn.Module):
    """The feed-forward weights of all experts, stacked.

    ``gate_up_proj`` is ``[experts, 2 * width, dim]`` (``width`` rows where there is no gate), ``down_proj``
    ``[experts, dim, width]``. On disk each expert keeps its official tensors ``N.gate_proj``, ``N.up_proj`` and
    ``N.down_proj`` (:meth:`slots`).
    """

    def __init__(self, experts: int, dim: int, width: int, act: Activation, gated: bool = True, dropout: float = 0.0):
        super().__init__()
        self.gated, self.act, self.dropout, self.width = gated, act, dropout, width
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width if gated else width, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, width))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """``[tokens, dim]`` to the weighted sum of each token's chosen experts, ``[tokens, dim]``."""
        dropout = self.dropout if self.training else 0.0
        return grouped_experts(x, chosen, weights, self.gate_up_proj, self.down_proj, self.act, self.gated, dropout)

    def slots(self) -> dict[str, Slot]:
        """Where each expert's official tensors lie in the stacks."""
        experts, dim, width = self.down_proj.shape
        parts = ["gate_proj", "up_proj"] if self.gated else ["up_proj"]
        table = {}
        for e in range(experts):
            for i, part in enumerate(parts):
                table[f"{e}.{part}.weight"] = Slot("gate_up_proj", i * width, (i + 1) * width, item=e)
            table[f"{e}.down_proj.weight"] = Slot("down_proj", 0, dim, item=e)
        return table


class Dispatcher(Protocol):
    """Brings tokens to the experts that were chosen for them and their results back."""

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        """``[tokens, dim]`` in and out."""
        ...


class LocalDispatcher:
    """All experts are here."""

    def __call__(self, experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        """See :class:`Dispatcher`."""
        return experts(x, routing.weights, routing.chosen)


class MoE(nn.Module):
    """Routed experts plus shared ones that every token visits: ``[batch, tokens, dim]`` to the same and the routing."""

    def __init__(self, gate: Router, experts: Experts, shared: nn.Module | None, dispatch: Dispatcher | None = None):
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_experts = shared
        self.dispatch: Dispatcher = dispatch or LocalDispatcher()

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        tokens = x.flatten(0, -2)  # [batch * tokens, dim]
        routing = self.gate(tokens)
        out = self.dispatch(self.experts, tokens, routing).view_as(x)
        return (out if self.shared_experts is None else out + self.shared_experts(x)), routing

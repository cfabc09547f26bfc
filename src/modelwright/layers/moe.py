"""Mixture of experts (arXiv:2401.06066): a router picks, stacked experts compute, a dispatcher moves the tokens.

Balance losses and loads are returned, not kept: the model sums them. Parallel experts swap the dispatcher only.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from modelwright.layers.bare import bare_activation
from modelwright.layers.slots import Slot
from modelwright.ops.experts import GroupedProduct, experts
from modelwright.ops.gated import Activation
from modelwright.ops.routing import (
    batch_balance_loss,
    biased_topk,
    document_balance_loss,
    expert_load,
    greedy_topk,
    group_balance_loss,
    group_limited_topk,
    router_scores,
    sequence_balance_loss,
    within_capacity,
    z_loss,
)


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided.

    ``weights`` (fp32, as applied) and ``chosen`` experts are ``[tokens, top_k]``; ``scores`` ``[tokens, experts]`` are
    those of all experts before any bias, and ``logits`` what they were computed from. ``counts`` ``[experts]``, where
    given, are the choices of all tokens that are balanced together, of which these are a part.
    """

    weights: Tensor
    chosen: Tensor
    scores: Tensor
    logits: Tensor
    counts: Tensor | None = None

    def balance_loss(self, batch: int, per_sequence: bool, documents: Tensor | None = None) -> Tensor:
        """The unscaled balance loss over ``batch`` sequences of equal length: one number, see ``ops/routing.py``.

        Rows that hold ``documents`` ``[batch, tokens]`` have one sequence in each of those.
        """
        if per_sequence and documents is not None:
            return document_balance_loss(self.scores, self.chosen, documents)
        if per_sequence:
            return sequence_balance_loss(self.scores, self.chosen, batch)
        return batch_balance_loss(self.scores, self.chosen, self.counts)

    def group_balance_loss(self, groups: int) -> Tensor:
        """The unscaled balance loss between ``groups`` of neighbouring experts, over all tokens: one number."""
        return group_balance_loss(self.scores, self.chosen, groups, self.counts)

    def z_loss(self) -> Tensor:
        """The unscaled loss that keeps the logits small: one number."""
        return z_loss(self.logits)

    def load(self) -> Tensor:
        """How many choices fell on each expert: fp32 ``[experts]``."""
        return expert_load(self.chosen, self.scores.shape[-1])


class Router(nn.Module):
    """Scores experts and picks ``top_k`` of them; scores and weights are fp32.

    Args:
        method: ``greedy``, ``group_limited_greedy`` or ``noaux_tc``; see ``ops/routing.py``.
        scoring: ``softmax`` or ``sigmoid``.
        groups, top_groups: of the grouped methods, how many groups there are and how many a token may choose from.
        normalise: divide the weights by their sum (when ``top_k > 1``).
        scaling: multiplies the weights, after normalising too.
        compute: the type of the product that gives the logits.
        capacity: in training an expert takes this multiple of its even share of choices at most, and what overflows
            gets no weight; None drops nothing.
        drop_by_token: who overflows; see ``ops/routing.py``.
        bias_on_disk: whether ``noaux_tc`` saves its bias; one that never moves need not be.
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
        compute: torch.dtype = torch.float32,
        capacity: float | None = None,
        drop_by_token: bool = False,
        bias_on_disk: bool = True,
    ):
        super().__init__()
        self.top_k, self.method, self.scoring, self.compute = top_k, method, scoring, compute
        self.capacity, self.drop_by_token = capacity, drop_by_token
        self.groups, self.top_groups = groups, top_groups
        self.normalise, self.scaling = normalise, scaling
        self.weight = nn.Parameter(torch.empty(experts, dim))
        if method == "noaux_tc":
            self.e_score_correction_bias: Tensor
            self.register_buffer("e_score_correction_bias", torch.zeros(experts), persistent=bias_on_disk)
        self._load: Tensor | None = None

    @property
    def load(self) -> Tensor:
        """How many choices fell on each expert in training since the bias last moved, ``[experts]``; the model counts.

        It is no buffer: data parallelism would send the first rank's over those of the others before each pass.
        """
        if self._load is None:
            self._load = torch.zeros(len(self.weight), dtype=torch.long, device=self.weight.device)
        return self._load

    @load.setter
    def load(self, value: Tensor) -> None:
        self._load = value

    def forward(self, x: Tensor) -> Routing:
        """``[tokens, dim]`` to the routing of those tokens."""
        logits, scores = router_scores(x, self.weight, self.scoring, self.compute)
        weights, chosen = self._choose(scores)
        if self.training and self.capacity is not None:
            weights = weights * within_capacity(weights, chosen, scores.shape[-1], self.capacity, self.drop_by_token)
        if self.normalise and self.top_k > 1:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(weights * self.scaling, chosen, scores, logits)

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
    ``[experts, dim, width]``. On disk each expert keeps its official tensors (:meth:`slots`): ``N.gate_proj``,
    ``N.up_proj`` and ``N.down_proj``, or what ``names`` calls the three. ``compute`` is the type of the products where
    it is not the weights'; the result has it too.
    """

    def __init__(
        self,
        experts: int,
        dim: int,
        width: int,
        act: Activation,
        gated: bool = True,
        dropout: float = 0.0,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        compute: torch.dtype | None = None,
    ):
        super().__init__()
        self.gated, self.act, self.dropout, self.width = gated, act, dropout, width
        self.names, self.compute = names, compute
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width if gated else width, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, width))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, product: GroupedProduct | None = None) -> Tensor:
        """``[tokens, dim]`` to the weighted sum of each token's chosen experts, ``[tokens, dim]``.

        ``product`` is another way to multiply sorted tokens with the stacks, see ``ops/experts.py``.
        """
        dropout = self.dropout if self.training else 0.0
        x, w_in, w_out = (
            tensor if self.compute is None else tensor.to(self.compute)
            for tensor in (x, self.gate_up_proj, self.down_proj)
        )
        act = bare_activation(self.act)
        return experts(x, chosen, weights, w_in, w_out, act, self.gated, dropout, product)

    def slots(self) -> dict[str, Slot]:
        """Where each expert's official tensors lie in the stacks."""
        experts, dim, width = self.down_proj.shape
        gate, up, down = self.names
        parts = [gate, up] if self.gated else [up]
        table = {}
        for e in range(experts):
            for i, part in enumerate(parts):
                table[f"{e}.{part}.weight"] = Slot("gate_up_proj", i * width, (i + 1) * width, item=e)
            table[f"{e}.{down}.weight"] = Slot("down_proj", 0, dim, item=e)
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
    """Routed experts plus shared ones that every token visits: ``[..., dim]`` to the same.

    ``shared_gate`` ``[..., dim] -> [..., 1]`` weighs what the shared ones say, through a sigmoid.
    """

    def __init__(
        self,
        gate: Router,
        experts: Experts,
        shared: nn.Module | None,
        dispatch: Dispatcher | None = None,
        shared_gate: nn.Module | None = None,
    ):
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_experts = shared
        self.shared_expert_gate = shared_gate
        self.dispatch: Dispatcher = dispatch or LocalDispatcher()

    def route(self, x: Tensor) -> Routing:
        """Which experts the tokens of ``x`` visit, for a caller who is to know it too."""
        return self.gate(x.flatten(0, -2))  # of [batch * tokens, dim]

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        """With the `routing` of ``x``, where it is known."""
        routing = self.route(x) if routing is None else routing
        out = self.dispatch(self.experts, x.flatten(0, -2), routing).view_as(x)
        if self.shared_experts is None:
            return out
        shared = self.shared_experts(x)
        if self.shared_expert_gate is not None:
            shared = self.shared_expert_gate(x).sigmoid() * shared
        return out + shared

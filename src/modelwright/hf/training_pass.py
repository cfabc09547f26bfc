"""A training pass: the summed loss of what counts, the balance losses of real tokens, and what both are weighed by.

It differs from a causal model's ``forward`` in what a loop over micro-batches needs: sums instead of means, no logits
of whole rows, and padding that neither balances experts nor loads them. Which labels count is the family's rule.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from modelwright.hf.arguments import PassInputs
from modelwright.hf.documents import DocumentMarks
from modelwright.hf.targets import Targets
from modelwright.layers import Routing
from modelwright.layers.balance import drops_choices
from modelwright.ops.cross_entropy import IGNORED, called_cross_entropy, linear_cross_entropy
from modelwright.ops.routing import switch_balance_loss


@dataclass(frozen=True)
class PassCounts:
    """What there is to learn from in a micro-batch, known before anything is computed.

    Attributes:
        counted: labels that count.
        tokens: real tokens.
        sequences: documents, or rows where a row is one, that have real tokens.
    """

    counted: int
    tokens: int
    sequences: int

    def __add__(self, other: Self) -> "PassCounts":
        return PassCounts(self.counted + other.counted, self.tokens + other.tokens, self.sequences + other.sequences)


@dataclass(frozen=True)
class PassLoss:
    """The loss of one micro-batch, in sums that a trainer divides once for the whole step.

    Attributes:
        total: the summed cross-entropy of the labels that count, fp32.
        counts: how many those are, and the rest that losses are weighed by.
        balance: the weighted balance losses, their mean over its sequences or tokens; None where there are none.
        by_sequence: whether balance losses are means over sequences, and otherwise over all tokens together.
        loads: how many choices of real tokens fell on each expert, ``[layers, experts]``; None without experts.
        dropped: how many of them found no room with their expert, ``[layers]``; None where experts have no capacity.
    """

    total: Tensor
    counts: PassCounts
    balance: Tensor | None
    by_sequence: bool
    loads: Tensor | None
    dropped: Tensor | None = None

    @property
    def balance_items(self) -> int:
        """What the balance loss is a mean over."""
        return self.counts.sequences if self.by_sequence else self.counts.tokens


@dataclass(frozen=True)
class _Learned:
    """The targets of a pass ``[batch, tokens]``, its documents as consecutive numbers, and which tokens are real."""

    following: Tensor
    documents: Tensor
    real: Tensor | None
    packed: bool

    @classmethod
    def of(cls, model: Any, targets: Targets, ids: Tensor | None, shape: tuple[int, int], inputs: dict) -> Self:
        following = model.next_tokens(targets.labels, None if ids is None else targets.beside(ids))
        mask = inputs.get("attention_mask")
        marks = DocumentMarks(
            inputs.get("position_ids"), inputs.get("cu_seq_lens_q"), inputs.get("cu_seq_lens_k"), inputs.get("seq_idx")
        )
        documents = marks.documents(*shape, 0, mask)
        real = None if mask is None or mask.dim() != 2 else mask[:, mask.shape[1] - shape[1] :].bool()
        device = following.device
        if documents is None:
            numbers = torch.arange(shape[0], device=device)[:, None].expand(shape)
            return cls(following, numbers, None if real is None or bool(real.all()) else real.to(device), False)
        starts = torch.ones(shape, dtype=torch.bool, device=device)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        numbers = (starts.flatten().cumsum(0) - 1).view(shape)
        meant = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=device)
        meant[numbers.flatten()[(following[:, : shape[1]] != IGNORED).flatten()]] = True
        learned = meant[numbers]  # the tail of a packed row is a document of which nothing is learned
        real = learned if real is None else learned & real.to(device)
        return cls(following, numbers, None if bool(real.all()) else real, True)

    def counts(self) -> PassCounts:
        counted = int((self.following != IGNORED).sum())
        if self.real is None:
            sequences = int(self.documents[-1, -1]) + 1
            return PassCounts(counted, self.documents.numel(), sequences)
        return PassCounts(counted, int(self.real.sum()), len(self.documents[self.real].unique()))

    def routings(self, routings: tuple[Routing, ...]) -> tuple[tuple[Routing, ...], int, Tensor | None]:
        """Those of the real tokens, of how many rows, and their documents, as balance losses take them."""
        if self.real is None:
            return routings, len(self.documents), self.documents if self.packed else None
        own = self.real.flatten().nonzero()[:, 0]
        kept = tuple(Routing(*(part.index_select(0, own) for part in _parts(routing))) for routing in routings)
        return kept, 1, self.documents[self.real][None]


def training_counts(model: Any, labels: Tensor | None, inputs: dict[str, Any]) -> PassCounts:
    """See :meth:`CausalNetwork.training_counts`."""
    return _learned(model, labels, dict(inputs)).counts()


@torch.no_grad()
def training_loads(model: Any, labels: Tensor | None, inputs: dict[str, Any]) -> Tensor | None:
    """See :meth:`CausalNetwork.training_loads`."""
    learned = _learned(model, labels, inputs)
    if not model.base_model.balances_batches:
        return None
    routings = model.base_model(**inputs, use_cache=False, return_dict=True, output_routings=True).routings
    return torch.stack([routing.load() for routing in learned.routings(routings)[0]])


def training_loss(
    model: Any, labels: Tensor | None, chunk: int | None, loads: Tensor | None, inputs: dict[str, Any]
) -> PassLoss:
    """See :meth:`CausalNetwork.training_loss`."""
    learned = _learned(model, labels, inputs)
    decoder = model.base_model
    outputs = decoder(**inputs, use_cache=False, return_dict=True, output_routings=True)
    total = _cross_entropy(model, outputs.last_hidden_state, learned.following, chunk)
    counts, routings = learned.counts(), outputs.routings
    by_sequence = decoder.balances_sequences and outputs.router_logits is None
    if routings is None:
        return PassLoss(total, counts, None, by_sequence, None)
    routings, batch, documents = learned.routings(routings)
    if loads is not None:
        routings = tuple(replace(routing, counts=of_all) for routing, of_all in zip(routings, loads, strict=True))
    with torch.no_grad():
        own, dropped = torch.stack([routing.load() for routing in routings]), None
        if drops_choices(decoder):
            dropped = torch.stack([(routing.weights == 0).sum() for routing in routings])
    balance = None
    if counts.tokens and outputs.router_logits is not None:
        logits = [routing.logits for routing in routings]
        balance = model.config.router_aux_loss_coef * switch_balance_loss(logits, model.config.num_experts_per_tok)
    elif counts.tokens:
        balance = decoder.balance_loss(routings, batch, documents)
    return PassLoss(total, counts, balance, by_sequence, own, dropped)


def _learned(model: Any, labels: Tensor | None, inputs: dict[str, Any]) -> _Learned:
    following, mask, ids = inputs.pop("shift_labels", None), inputs.get("attention_mask"), inputs.get("input_ids")
    targets = Targets.of(labels, following, mask, None, model.takes_aligned_labels)
    assert targets is not None, "a training pass has labels"
    shape = PassInputs.of(ids, inputs.get("inputs_embeds"), mask)
    return _Learned.of(model, targets, ids, (shape.batch, shape.tokens), inputs)


def _cross_entropy(model: Any, hidden: Tensor, following: Tensor, chunk: int | None) -> Tensor:
    """The summed loss of the tokens of ``hidden`` ``[batch, tokens, dim]`` that are to foresee something."""
    targets = following[:, : hidden.shape[1]].flatten().to(hidden.device)
    own = (targets != IGNORED).nonzero()[:, 0]
    x, head, weight = hidden.flatten(0, 1), model.get_output_embeddings(), model.head_weight()
    if len(own) < len(targets):
        x, targets = x.index_select(0, own), targets.index_select(0, own)
    if not len(targets):
        return x.float().sum()  # of nothing, and yet of the graph
    chunk = chunk or len(targets)
    if weight is None:
        return called_cross_entropy(model.head, x, targets, chunk)
    compute = getattr(head, "compute", None) or weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        compute = torch.get_autocast_dtype(x.device.type)
    return linear_cross_entropy(x.to(compute), weight.to(compute), targets, chunk)


def _parts(routing: Routing) -> tuple[Tensor, ...]:
    return routing.weights, routing.chosen, routing.scores, routing.logits

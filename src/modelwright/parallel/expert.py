"""Expert parallelism: routed experts shared out among ranks, in place; what every token visits is sliced as elsewhere.

Each rank has all tokens and computes those that chose its experts. Routed and shared experts are added up over the
ranks at once, after the layer. Leaves out moving tokens between ranks that have different ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.errors import ConfigError
from modelwright.layers import Experts, GatedMLP, MoE, PlainMLP, Routing
from modelwright.layers.quantized import QuantizedExperts
from modelwright.parallel.layers import change_buffers, keep_stored_inputs, sum_results
from modelwright.parallel.mesh import Mesh
from modelwright.parallel.tensor import Rule, keep_hidden, unit_share


@dataclass(frozen=True)
class OwnExperts:
    """The dispatcher of a rank that holds the experts of these numbers; the ranks' results add up to all experts'."""

    numbers: range

    def __call__(self, experts: Any, x: Tensor, routing: Routing) -> Tensor:
        """See :class:`modelwright.layers.Dispatcher`; 0 for tokens that chose no expert of these."""
        own = (routing.chosen >= self.numbers.start) & (routing.chosen < self.numbers.stop)
        token, place = own.nonzero(as_tuple=True)  # [choices of these experts]
        weights, chosen = routing.weights[token, place], routing.chosen[token, place] - self.numbers.start
        total = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
        if len(token):
            said = experts(x[token], weights[:, None], chosen[:, None])
            total.index_add_(0, token, said.to(total.dtype))
        return total.to(experts.compute or x.dtype)


def expert_rule(expert_ranks: int) -> Rule:
    """The rule for layers of experts that `expert_ranks` ranks, or groups of ranks, share out.

    Each group of ``ranks / expert_ranks`` keeps whole experts, of which each of its ranks keeps some hidden units.
    """

    def slice_moe(moe: MoE, mesh: Mesh) -> None:
        outer, inner = _groups(mesh, expert_ranks)
        numbers = _expert_share(moe.gate.weight.shape[0], outer)
        _keep_experts(moe.experts, numbers)
        if inner.size > 1:
            _keep_hidden(moe.experts, inner)
        if outer.size > 1:
            moe.dispatch = OwnExperts(numbers)
        if moe.shared_experts is not None:
            assert isinstance(moe.shared_experts, GatedMLP | PlainMLP)
            keep_hidden(moe.shared_experts, mesh)
        sum_results(moe, mesh)

    return slice_moe


def _groups(mesh: Mesh, expert_ranks: int) -> tuple[Mesh, Mesh]:
    """This rank's place among the groups that share the experts out, and its place in its group."""
    if mesh.size % expert_ranks:
        raise ConfigError(f"the ranks ({mesh.size}) must be divisible by the expert-parallel ranks ({expert_ranks})")
    within = mesh.size // expert_ranks
    return Mesh(mesh.rank // within, expert_ranks), Mesh(mesh.rank % within, within)


def _expert_share(experts: int, groups: Mesh) -> range:
    if experts < groups.size:
        raise ConfigError(f"the routed experts ({experts}) must be at least the expert-parallel ranks ({groups.size})")
    return groups.share(experts)


def _keep_experts(experts: Experts | QuantizedExperts, kept: range) -> None:
    for name in ("gate_up_proj", "down_proj"):
        _change(experts, name, lambda stack: stack[kept.start : kept.stop].clone())


def _keep_hidden(experts: Experts | QuantizedExperts, mesh: Mesh) -> None:
    """Some hidden units of every expert: rows of its gate and up projections, inputs of its down projection."""
    width = experts.gate_up_proj.shape[1] // (2 if experts.gated else 1)
    units = unit_share(width, mesh)
    starts = (0, width) if experts.gated else (0,)
    rows = torch.cat([torch.arange(start + units.start, start + units.stop) for start in starts])
    rows = rows.to(experts.gate_up_proj.device)
    _change(experts, "gate_up_proj", lambda stack: stack[:, rows])
    if isinstance(experts, QuantizedExperts):
        keep_stored_inputs(experts, "down_proj", units)
    else:
        _change(experts, "down_proj", lambda stack: stack[..., units.start : units.stop].contiguous())
        experts.width = len(units)


def _change(experts: Experts | QuantizedExperts, name: str, cut: Callable[[Tensor], Tensor]) -> None:
    if isinstance(experts, QuantizedExperts):
        change_buffers(experts, name, cut)
    else:
        setattr(experts, name, nn.Parameter(cut(getattr(experts, name).detach()), requires_grad=False))

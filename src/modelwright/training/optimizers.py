"""The optimizers of a run: which parameters each steps, at which share of the rate, with or without weight decay.

Parameters are known by their names in the model, here and in what is saved of an optimizer's state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.layers import Router
from modelwright.training.eight_bit import EightBitAdam
from modelwright.training.lion import Lion

MUON_MOMENTUM = 0.95
ADAM_BESIDE_MUON = 0.75
"""The rate of what Muon does not step, as a share of its own."""


@dataclass(frozen=True)
class Steered:
    """A parameter that is stepped.

    Attributes:
        name: in the model.
        weight: what the optimizer steps: the parameter itself, or its copy in fp32.
        part: of the model.
        rate: the learning rate of its part; None: the run's.
        decays: whether weight decay may shrink it: matrices, and no router's.
        hidden: whether it is a matrix between the embedding and the head.
    """

    name: str
    weight: nn.Parameter
    part: str
    rate: float | None
    decays: bool
    hidden: bool


def kinds_of(model: nn.Module) -> tuple[set[str], set[str]]:
    """The names of the parameters that may decay, and of those that are hidden matrices.

    What is attached to an embedding or to the head, as the pairs of LoRA are, counts as a part of it.
    """
    decaying, hidden = set(), set()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends = [each for each in model.modules() if isinstance(each, nn.Embedding) or each is head]
    outer = {id(within) for each in ends for within in each.modules()}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or isinstance(module, Router):
                continue
            whole = f"{prefix}.{name}" if prefix else name
            decaying.add(whole)
            if parameter.dim() == 2 and prefix and id(module) not in outer:
                hidden.add(whole)
    return decaying, hidden


class Optimizers:
    """The torch optimizers that a run's config asks for, over all that trains.

    Args:
        part: a :class:`modelwright.configs.run.OptimizerPart`.
    """

    def __init__(self, part: Any, steered: Iterable[Steered]):
        self.part, self.steered = part, list(steered)
        self.names = {id(each.weight): each.name for each in self.steered}
        if part.name == "muon":
            hidden = [each for each in self.steered if each.hidden]
            rest = [each for each in self.steered if not each.hidden]
            self.all = [self._muon(hidden)] if hidden else []
            self.all += [self._adam(torch.optim.AdamW, rest, ADAM_BESIDE_MUON)] if rest else []
        else:
            self.all = [self._single()]

    def _single(self) -> torch.optim.Optimizer:
        part, name = self.part, self.part.name
        if name in ("adamw", "adam"):
            return self._adam(torch.optim.AdamW if name == "adamw" else torch.optim.Adam, self.steered)
        groups = self._groups(self.steered)
        if name == "sgd":
            return torch.optim.SGD(groups, lr=part.lr, momentum=part.momentum, foreach=self._foreach())
        if name == "adagrad":
            return torch.optim.Adagrad(groups, lr=part.lr, eps=part.eps, foreach=self._foreach())
        if name == "adafactor":
            return torch.optim.Adafactor(groups, lr=part.lr)
        return Lion(groups, lr=part.lr, betas=part.betas)

    def _adam(self, kind: Any, steered: list[Steered], share: float = 1.0) -> torch.optim.Optimizer:
        part, groups = self.part, self._groups(steered, share)
        if part.state == "int8":
            decoupled = kind is torch.optim.AdamW
            return EightBitAdam(groups, lr=part.lr, betas=part.betas, eps=part.eps, decoupled=decoupled)
        fused = part.fused is not False and all(each.weight.device.type in ("cpu", "cuda") for each in steered)
        how = {"fused": True} if fused else {"foreach": self._foreach()}
        return kind(groups, lr=part.lr, betas=part.betas, eps=part.eps, **how)

    def _muon(self, steered: list[Steered]) -> torch.optim.Optimizer:
        momentum = self.part.momentum or MUON_MOMENTUM
        groups = self._groups(steered)
        return torch.optim.Muon(groups, lr=self.part.lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    def _foreach(self) -> bool | None:
        return None if self.part.fused == "auto" else self.part.fused

    def _groups(self, steered: list[Steered], share: float = 1.0) -> list[dict[str, Any]]:
        """Parameters of one part that decay alike form a group; ``share`` is its rate as one of the run's."""
        found: dict[tuple[str, bool], list[Steered]] = {}
        for each in steered:
            found.setdefault((each.part, self._shrinks(each)), []).append(each)
        return [
            {
                "params": [each.weight for each in members],
                "weight_decay": self.part.weight_decay if shrinks else 0.0,
                "part": name,
                "share": share * (members[0].rate or self.part.lr) / self.part.lr,
            }
            for (name, shrinks), members in found.items()
        ]

    def _shrinks(self, each: Steered) -> bool:
        """Whether weight decay shrinks a parameter."""
        matters = {"all": True, "matrices": each.decays, "matrices_and_routers": each.weight.dim() > 1}
        return matters.get(self.part.decay, False)

    def set_rate(self, rate: float) -> dict[str, float]:
        """Let the next step be of this rate; returns the one of each part."""
        rates = {}
        for group in self._all_groups():
            group["lr"] = rate * group["share"]
            rates[group["part"]] = max(group["lr"], rates.get(group["part"], 0.0))
        return rates

    def step(self) -> None:
        """Step by the gradients that the parameters have."""
        for optimizer in self.all:
            optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        for each in self.steered:
            each.weight.grad = None

    @torch.no_grad()
    def begin(self) -> None:
        """Let every parameter have its state, as it is before the first step."""
        if all(self.state_of(optimizer) for optimizer in self.all):
            return
        groups = self._all_groups()
        earlier = [(group["lr"], group["weight_decay"]) for group in groups]
        for group in groups:
            group["lr"] = group["weight_decay"] = 0.0
        for each in self.steered:
            each.weight.grad = torch.zeros_like(each.weight)
        self.step()
        self.clear()
        for group, (lr, decay) in zip(groups, earlier, strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        for optimizer in self.all:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()

    @staticmethod
    def state_of(optimizer: torch.optim.Optimizer) -> bool:
        """Whether ``optimizer`` has taken a step."""
        return all(optimizer.state.get(p) for group in optimizer.param_groups for p in group["params"])

    def tensors(self) -> dict[str, Tensor]:
        """The state of every parameter, each tensor as ``name of the parameter.name of the state``; not copied."""
        return {
            f"{self.names[id(parameter)]}.{key}": value
            for optimizer in self.all
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def _all_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.all for group in optimizer.param_groups]

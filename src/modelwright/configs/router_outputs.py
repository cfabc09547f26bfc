"""What trainers ask the config of any of transformers' mixtures of experts for, by the names that it has there.

TRL's trainers read ``output_router_logits``, ``router_aux_loss_coef``, ``num_experts`` and ``num_experts_per_tok``, and
set the first two. A config without experts has none of them, which is how they tell it from one with experts.
"""

from abc import abstractmethod
from typing import Any


class OfExperts:
    """An attribute of configs with experts, by :meth:`RouterOutputs.routed`.

    Of a config without them, and where it is only read, a value that is set is a key that nothing reads.
    """

    def __init__(self, settable: bool = False):
        self.settable = settable

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None:
            return self
        found, kept = config.routed(), vars(config)
        if self.name in kept and (self.settable or self.name not in found):
            return kept[self.name]
        if self.name in found:
            return found[self.name]
        raise AttributeError(f"{type(config).__name__} has no {self.name}: no layer routes to experts")

    def __set__(self, config: Any, value: Any) -> None:
        vars(config)[self.name] = value


class _Factor(OfExperts):
    """The factor of the balance loss, which is a field of its own in each family."""

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        if config is None or not config.routed():
            return super().__get__(config, owner)
        return config.balance_factor()

    def __set__(self, config: Any, value: Any) -> None:
        if config.routed():
            config.set_balance_factor(value)
        else:
            super().__set__(config, value)


class RouterOutputs:
    """A config of a family whose layers may route to experts.

    Attributes:
        output_router_logits: whether passes return the routers' logits and transformers' balance loss.
        router_aux_loss_coef: what weighs that loss: the family's own factor.
        num_experts, num_experts_per_tok: how many routed experts there are, and how many a token goes to.
    """

    output_router_logits = OfExperts(settable=True)
    router_aux_loss_coef = _Factor()
    num_experts = OfExperts()

    @abstractmethod
    def routed(self) -> dict[str, Any]:
        """The values of the others by name, unless they were set; empty where no layer routes to experts."""

    @abstractmethod
    def balance_factor(self) -> float:
        """What weighs the balance loss of experts; a `ConfigError` where there are other such losses beside it."""

    @abstractmethod
    def set_balance_factor(self, value: float) -> None:
        """Let ``value`` weigh the balance loss of experts."""

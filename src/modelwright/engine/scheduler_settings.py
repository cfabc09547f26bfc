"""`SchedulerSettings`, the limits within which steps are planned; the pages are the pool's."""

from dataclasses import dataclass

from modelwright.errors import ConfigError


@dataclass(frozen=True)
class SchedulerSettings:
    """How requests share the machine.

    Attributes:
        max_batch: how many sequences run at once.
        token_budget: how many tokens a step computes at most.
        shared_budget: how many of them may be of prompts where more than one sequence runs or waits; None for all.
            What decodes is beside it, so that prompts of half of it go two to a step, whoever draws meanwhile.
        chunk_prefill: whether pieces of prompts share a step with decodes. Without it steps of whole prompts and steps
            of decodes take turns, and a prompt longer than the budget gets a step to itself.
        max_context: how many tokens a sequence may have, drawn ones included; None leaves that to the pool.
        aging: how many steps of waiting outweigh one level of priority.

    Raises:
        ConfigError: a number is below 1, or the budget has no room for a token of each running sequence.
    """

    max_batch: int
    token_budget: int
    chunk_prefill: bool = True
    max_context: int | None = None
    aging: int = 1000
    shared_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "token_budget", "max_context", "aging", "shared_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.token_budget < self.max_batch:
            raise ConfigError(f"token_budget ({self.token_budget}) must be at least max_batch ({self.max_batch})")

    def budget(self, decoding: int, reading: int) -> int:
        """The tokens of a step, at most, while so many sequences lack their last token alone, and so many more."""
        if self.shared_budget is None or decoding + reading < 2:
            return self.token_budget
        return min(self.token_budget, self.shared_budget + decoding)

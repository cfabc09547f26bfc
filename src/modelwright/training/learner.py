"""One optimizer step: micro-batches through the model, one division by all that counts, the norm, and the step."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.families import family_of
from modelwright.hf.training_pass import PassCounts, PassLoss
from modelwright.layers.balance import move_biases, steered_routers
from modelwright.ops.cross_entropy import rows_at_once
from modelwright.training.compiled import compiled_way, compiling
from modelwright.training.gradients import clipping, fill_missing, norms_of, scale
from modelwright.training.memory import keep_less
from modelwright.training.optimizers import Optimizers, Steered, kinds_of
from modelwright.training.precision import LossScale, Weights
from modelwright.training.results import StepResult
from modelwright.training.schedules import rate_at
from modelwright.training.seeds import drawn_for

NORMS_REMEMBERED, NORMS_BEFORE_SPIKES = 64, 16
"""How many of the last steps' norms a spike is measured by, and how many there must be."""


@dataclass
class Sums:
    """What the micro-batches of a step add up to; tensors, so that nothing waits for the device."""

    lm: Tensor
    balance: Tensor | None = None
    loads: Tensor | None = None
    dropped: Tensor | None = None

    def add(self, passed: PassLoss, lm: Tensor, balance: Tensor | None) -> None:
        """Add a pass and its parts of the step's loss."""
        self.lm = self.lm + lm.detach()
        if balance is not None:
            self.balance = balance.detach() if self.balance is None else self.balance + balance.detach()
        if passed.loads is not None:
            self.loads = passed.loads if self.loads is None else self.loads + passed.loads
        if passed.dropped is not None:
            self.dropped = passed.dropped if self.dropped is None else self.dropped + passed.dropped

    def read(self, whole: Tensor, parts: Mapping[str, Tensor]) -> tuple[float, float | None, float, dict[str, float]]:
        """The losses, and norms beside them, as numbers: the one time that a step waits for the device at its end."""
        given = [self.lm, whole, *parts.values(), *([] if self.balance is None else [self.balance])]
        lm, norm, *others = torch.stack([each.float() for each in given]).tolist()
        return lm, None if self.balance is None else others[-1], norm, dict(zip(parts, others, strict=False))


class Learner:
    """A model and all that a step needs: weights in their types, optimizers, rates, limits.

    Args:
        model: a causal model; it is put into training mode, and its parameters into the types of the run.
        config: a :class:`modelwright.configs.run.RunConfig`.
        groups: the parts that train, each with ``part``, ``parameters`` by name and ``rate``.
        total: optimizer steps of the run.
        moves_biases: whether the biases that steer routers move.
    """

    def __init__(self, model: Any, config: Any, groups: Iterable[Any], total: int, moves_biases: bool = True):
        self.model, self.config, self.total = model, config, total
        self.device = model.device
        compute = getattr(torch, config.precision.compute or config.model.dtype)
        self.weights = Weights(model, compute, config.precision.autocast)
        self.scale = LossScale(config.precision.scale if compute == torch.float16 else None)
        self.steered = self._steered(groups)
        self.optimizers = Optimizers(config.optimizer, self.steered)
        self.routers = steered_routers(model) if moves_biases else []
        self.norms: list[float] = []
        keep_less(model, config.recompute, config.swap, self._compiler())
        nn.Module.train(model)

    def _compiler(self) -> Any:
        return compiled_way(self.device) if self.config.compile == "layers" else None

    def _steered(self, groups: Iterable[Any]) -> list[Steered]:
        decaying, hidden = kinds_of(self.model)
        return [
            Steered(name, self.weights.masters[name], group.part, group.rate, name in decaying, name in hidden)
            for group in groups
            for name in group.parameters
        ]

    def step_on(self, step: int, batch: Any) -> StepResult:
        """Take the ``step``-th step on a ``StepBatch``; what it cannot take is said in the result."""
        started = monotonic()
        with _deterministic(self.config.deterministic, self.device):
            return self._taken(step, batch, started)

    def _taken(self, step: int, batch: Any, started: float) -> StepResult:
        counts = [self.model.training_counts(**inputs) for inputs in batch.micro]  # before they are on the device
        micro = [self.placed(inputs) for inputs in batch.micro]
        sums = Sums(torch.zeros((), device=self.device))
        loads = self._loads(step, micro)
        for number, inputs in enumerate(micro):
            with self._pass(step, number):
                self._learn(inputs, number, counts, loads, sums)
        return self._finish(step, batch, sums, reduce(add, counts), started)

    @contextmanager
    def _pass(self, step: int, number: int) -> Iterator[None]:
        """What a micro-batch runs in, there and back: its random numbers, and kernels of compiled layers."""
        with drawn_for(self.config.seed, step, number), compiling(self.config.compile):
            yield

    def _products(self) -> AbstractContextManager[Any]:
        """The types of a pass's products."""
        return self.weights.products(self.device.type)

    def _loads(self, step: int, micro: list[dict[str, Any]]) -> Tensor | None:
        """The choices of experts of the whole step, where a balance loss over all of it asks for them.

        Their count must be known before the first backward pass: each micro-batch runs once more, without gradients.
        """
        decoder = family_of(self.model).decoder_of(self.model)
        if len(micro) == 1 or self.config.loss.balance_scope != "global" or not decoder.base_model.balances_batches:
            return None
        found = []
        for number, inputs in enumerate(micro):
            with self._pass(step, number), self._products():
                found.append(self.model.training_loads(**inputs))
        return torch.stack(found).sum(dim=0)

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A micro-batch on the model's device."""
        return {
            name: part.to(self.device, non_blocking=True) if isinstance(part, Tensor) else part
            for name, part in inputs.items()
        }

    def _learn(self, inputs: dict[str, Any], number: int, counts: list[PassCounts], loads: Any, sums: Sums) -> None:
        """Add a micro-batch's gradients to those of the step."""
        with self._products():  # gradients have the types of what they are of: autocast would make those of fp32 low
            passed: PassLoss = self.model.training_loss(**inputs, chunk=self.chunk(), loads=loads)
        if self.config.loss.per_token:
            counted = sum(each.counted for each in counts)
        else:
            counted = counts[number].counted * len(counts)
        lm = passed.total / max(counted, 1)
        balance = None
        if passed.balance is not None:
            balance = passed.balance * self._share(passed, counts)
        loss = lm if balance is None else lm + balance
        (loss * self.scale.value).backward()
        sums.add(passed, lm, balance)

    def _share(self, passed: PassLoss, counts: list[PassCounts]) -> float:
        """A micro-batch's weight in the balance loss of the step, which is a mean over sequences, or over tokens."""
        if not self.config.loss.per_token:
            return 1 / len(counts)
        items = sum(each.sequences if passed.by_sequence else each.tokens for each in counts)
        return passed.balance_items / items

    def chunk(self) -> int | None:
        """How many tokens have logits at once."""
        chunk = self.config.loss.chunk
        if chunk != "auto":
            return chunk
        return rows_at_once(self.model.config.get_text_config().vocab_size, self.device)

    def _finish(self, step: int, batch: Any, sums: Sums, counts: PassCounts, started: float) -> StepResult:
        fill_missing(self.steered)
        scale(self.steered, 1 / self.scale.value)
        lm, balance, norm, norms = sums.read(*norms_of(self.steered))
        loss = lm if balance is None else lm + balance
        used = self.scale.value if self.scale.part is not None else None
        skipped = self._reason_to_skip(loss, norm)
        rates = self.optimizers.set_rate(rate_at(self.config.schedule, self.config.optimizer.lr, self.total, step))
        if skipped is None:
            self._step(norm, sums.loads)
        self.optimizers.clear()
        for router in self.routers:
            router.load.zero_()
        return StepResult(
            step=step,
            loss=loss,
            lm=lm,
            balance=balance,
            counted=counts.counted,
            tokens=counts.tokens,
            norm=norm,
            norms=norms,
            rates=rates,
            loads=sums.loads,
            dropped=sums.dropped,
            skipped=skipped,
            seconds=monotonic() - started,
            scale=used,
        )

    def _reason_to_skip(self, loss: float, norm: float) -> str | None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            if math.isfinite(loss) and self.scale.may_fall:
                found = f"gradients overflow at a loss scale of {self.scale.value:g}"
                self.scale.overflowed()
                return found
            return f"{NOT_FINITE}: loss {loss}, norm of the gradients {norm}"
        return self._spike(norm)

    def _spike(self, norm: float) -> str | None:
        spike = self.config.limits.spike
        if spike is None:
            return None
        if self.config.limits.spike_of == "norm":
            return f"the norm of the gradients ({norm:g}) is above {spike:g}" if norm > spike else None
        usual = median(self.norms) if len(self.norms) >= NORMS_BEFORE_SPIKES else math.inf
        if norm <= spike * usual:
            return None
        return f"the norm of the gradients ({norm:g}) is more than {spike:g} times the usual one ({usual:g})"

    def _step(self, norm: float, loads: Tensor | None) -> None:
        scale(self.steered, clipping(norm, self.config.clip))
        self.optimizers.step()
        self.weights.refresh()
        self.scale.worked()
        self.norms = [*self.norms, norm][-NORMS_REMEMBERED:]
        if self.routers and loads is not None:
            for router, load in zip(self.routers, loads, strict=True):
                router.load = load.long()
            move_biases(self.routers, self.model.router_bias_rate(), None)


NOT_FINITE = "not finite"
"""How the reason of a step begins that no number was left of."""


@contextmanager
def _deterministic(asked: bool | str, device: torch.device) -> Iterator[None]:
    """Let torch take no operation that gives other bits from run to run, where the run asks for it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # torch puts an object in its place, whose property no type checker sees
    filled = memory.fill_uninitialized_memory
    if asked == "auto":
        asked = device.type == "cpu"
    try:
        torch.use_deterministic_algorithms(bool(asked))
        memory.fill_uninitialized_memory = False  # which no operation here reads
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled

"""The learning rate of each step, by our schedules and by MindFormers' (core/lr/lr_schedule.py), as plain formulas.

Ours count from step 1: warming up reaches the whole rate at its last step, and the run's last step has the rate that it
ends at. MindFormers' count from step 0, so that a run warmed up from nothing takes a first step of rate 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelwright.configs.run.learning import steps_of

DECAY_OF_WSD = 0.2
"""The share of a run in which ``wsd`` falls where nothing says it."""


@dataclass(frozen=True)
class Course:
    """What a formula knows of its run: rates are the optimizer's own, not shares of it.

    Attributes:
        lr: the rate between warming up and decaying.
        start, end: the rates at the very begin and at the end.
        total, warmup: steps of all, and of warming up.
        decay: steps of the decay, or of a period; None: the schedule's own default.
        keep: steps between warming up and the decay; None: the schedule's own default.
        after: the rate after it has fallen to ``end``.
        power, cycles: of ``polynomial``, and of those that swing; None: the schedule's own default.
    """

    lr: float
    start: float
    end: float
    total: int
    warmup: int
    decay: int | None
    keep: int | None
    after: float
    power: float
    cycles: float | None

    def warming(self, at: float) -> float:
        """The rate while it rises in a line."""
        return self.start + (self.lr - self.start) * at / self.warmup

    def between(self, share: float) -> float:
        """The rate that has ``share`` of its way to the end left."""
        return self.end + (self.lr - self.end) * share

    def progress(self, at: float) -> float:
        """From 0 at the end of warming up to 1 at the end of the run."""
        return min(max(at - self.warmup, 0.0) / max(self.total - self.warmup, 1), 1.0)


def rate_at(part: Any, lr: float, total: int, step: int) -> float:
    """The learning rate of the ``step``-th step (the first is 1) of a run of ``total``.

    Args:
        part: a :class:`modelwright.configs.run.SchedulePart`.
        lr: the optimizer's.
    """
    stretched = part.total or total
    end = part.end if part.name in _MINDFORMERS else part.end * lr
    warmup, decay, keep, begins = (
        None if length is None else steps_of(length, stretched)
        for length in (part.warmup, part.decay, part.keep, part.decay_start)
    )
    if begins is not None:
        decay = stretched - begins
    after = end if part.end_after is None else part.end_after
    course = Course(lr, part.warmup_init, end, stretched, warmup or 0, decay, keep, after, part.power, part.cycles)
    formula = (_OURS | _MINDFORMERS)[part.name]
    return formula(course, step - 1 + part.counts_from)


def _half_wave(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _ours(share_left: Callable[[Course, float], float]) -> Callable[[Course, float], float]:
    def rate(course: Course, at: float) -> float:
        return course.warming(at) if at < course.warmup else course.between(share_left(course, at))

    return rate


def _stable(course: Course, at: float) -> float:
    decay = max(course.decay if course.decay is not None else int(DECAY_OF_WSD * course.total), 1)
    return min(1.0, max(course.total - at, 0.0) / decay)


def _restarts(course: Course, at: float) -> float:
    progress = course.progress(at)
    return 0.0 if progress >= 1 else _half_wave((course.cycles or 1.0) * progress % 1.0)


_OURS: dict[str, Callable[[Course, float], float]] = {
    "cosine": _ours(lambda course, at: _half_wave(2 * (course.cycles or 0.5) * course.progress(at))),
    "linear": _ours(lambda course, at: 1 - course.progress(at)),
    "constant": _ours(lambda course, at: 1.0),
    "polynomial": _ours(lambda course, at: (1 - course.progress(at)) ** course.power),
    "restarts": _ours(_restarts),
    "wsd": _ours(_stable),
}


def _constant_warm_up(course: Course, at: float) -> float:
    return course.warming(at) if at < course.warmup else course.lr


def _linear_with_warm_up(course: Course, at: float) -> float:
    if at < course.warmup:
        return course.warming(at)
    return course.lr * max(0.0, (course.total - at) / max(1, course.total - course.warmup))


def _cosine_with_warm_up(course: Course, at: float) -> float:
    if at >= max(1, course.total if course.decay is None else course.decay):
        return course.end
    if at < course.warmup:
        return course.warming(at)
    progress = (at - course.warmup) / max(1, course.total - course.warmup)
    return course.between(max(0.0, _half_wave(2 * (course.cycles or 0.5) * progress)))


def _restarts_with_warm_up(course: Course, at: float) -> float:
    if at >= max(1, course.total if course.decay is None else course.decay):
        return course.end
    if at < course.warmup:
        return course.warming(at)
    progress = (at - course.warmup) / max(1, course.total - course.warmup)
    if progress >= 1:
        return 0.0
    return course.between(max(0.0, _half_wave((course.cycles or 1.0) * progress % 1.0)))


def _polynomial_with_warm_up(course: Course, at: float) -> float:
    decay = max(1, course.total - course.warmup if course.decay is None else course.decay)
    if at >= decay:
        return course.end
    if at < course.warmup:
        return course.warming(at)
    return course.between((1 - (at - course.warmup) / decay) ** course.power)


def _constant_with_cool_down(course: Course, at: float) -> float:
    if at < course.warmup:
        return course.warming(at)
    begins = course.warmup + (course.keep or 0)
    decay = max(1, course.total - begins if course.decay is None else course.decay)
    progress = (at - begins) / decay
    if progress >= 1:
        return course.after
    return course.between(max(0.0, _half_wave(2 * (course.cycles or 0.5) * max(progress, 0.0))))


def _warm_up_stable_decay(course: Course, at: float) -> float:
    if at < course.warmup:
        return course.warming(at)
    decay = max(1, int(DECAY_OF_WSD * course.total) if course.decay is None else course.decay)
    return course.between(1 - min(max(at - (course.total - decay), 0.0) / decay, 1.0))


def _cosine_annealing(course: Course, at: float) -> float:
    """``t_max`` is the decay."""
    return course.between(max(0.0, _half_wave(at / (course.decay or course.total))))


def _cosine_annealing_restarts(course: Course, at: float) -> float:
    """``t_0`` is the decay, ``t_mult`` the cycles."""
    length, longer, start = float(course.decay or course.total), course.cycles or 1.0, 0.0
    while at >= start + length:
        start, length = start + length, length * longer
    return course.between(max(0.0, _half_wave((at - start) / length)))


_MINDFORMERS: dict[str, Callable[[Course, float], float]] = {
    "ConstantWarmUpLR": _constant_warm_up,
    "LinearWithWarmUpLR": _linear_with_warm_up,
    "CosineWithWarmUpLR": _cosine_with_warm_up,
    "CosineWithRestartsAndWarmUpLR": _restarts_with_warm_up,
    "PolynomialWithWarmUpLR": _polynomial_with_warm_up,
    "ConstantWithCoolDownLR": _constant_with_cool_down,
    "WarmUpStableDecayLR": _warm_up_stable_decay,
    "CosineAnnealingLR": _cosine_annealing,
    "CosineAnnealingWarmRestarts": _cosine_annealing_restarts,
}

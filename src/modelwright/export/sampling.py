"""Choosing the next tokens from scores with numpy: greedy, or by temperature, top-k and top-p, as transformers does."""

from dataclasses import dataclass

import numpy as np

from modelwright.configs.limits import COLDEST, check_sampling
from modelwright.errors import RequestFailed


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its scores.

    Attributes:
        temperature: what scores are divided by; 0 (anything below 1e-5) takes the best one.
        top_k: choose among the k best only; 0 or -1 means all.
        top_p: choose among the fewest best that together have this probability, one at least; 1 means all.

    Raises:
        RequestError: a value out of its range, which is that of the engine.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_sampling({"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p})

    def choose(self, scores: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """``[batch, vocabulary]`` to the chosen tokens, int64 ``[batch]``; one number of ``random`` a row.

        Raises:
            RequestFailed: a score is NaN or infinite.
        """
        if not np.isfinite(scores.max(axis=-1)).all():
            raise RequestFailed.of_scores(scores.dtype, bool(np.isnan(scores).any()))
        if self.temperature < COLDEST:
            return scores.argmax(axis=-1)
        chances = self.probabilities(scores).cumsum(axis=-1)
        marks = random.random(len(scores)) * chances[:, -1]
        return (chances <= marks[:, None]).sum(axis=-1)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """``[batch, vocabulary]`` to float64 probabilities of the same shape, 0 where a token is ruled out."""
        wide = scores.astype(np.float64) / self.temperature
        if 0 < self.top_k < wide.shape[-1]:
            least = np.partition(wide, -self.top_k, axis=-1)[:, -self.top_k, None]
            wide = np.where(wide < least, -np.inf, wide)
        chances = np.exp(wide - wide.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        return chances if self.top_p == 1 else _nucleus(chances, self.top_p)


def _nucleus(chances: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest best tokens whose probabilities reach ``top_p`` together, their probabilities summing to 1 again."""
    order = np.argsort(-chances, axis=-1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=-1)
    before = ranked.cumsum(axis=-1) - ranked  # what the better tokens have together
    kept = np.where(before < top_p, ranked, 0.0)
    kept[:, 0] = ranked[:, 0]
    result = np.zeros_like(chances)
    np.put_along_axis(result, order, kept, axis=-1)
    return result / result.sum(axis=-1, keepdims=True)

"""The noise that turns scores into draws: a pure function of sample, position and token, and of nothing else.

Adding Gumbel noise to scores and taking the best token draws from their softmax (the "Gumbel-max trick"; Maddison et
al. 2014, arXiv:1411.0030). The noise is hashed (SplitMix64; Steele et al. 2014, doi:10.1145/2660193.2660195) from the
sample's key, the position in the output and the token's id. So a draw is the same in whatever batch it is made, however
often it is made again after a preemption, and among however few candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_BITS = 53
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


def sample_key(seed: int, index: int = 0) -> int:
    """The key of the `index`-th sample of a request with `seed`: 64 bits."""
    return _mix(_mix(seed) + (index + 1) * _STEP)


def stream(key: int, position: int) -> int:
    """Where the noise of one draw starts: that of `key`'s output token number `position`; fits an int64."""
    word = _mix(key + (position + 1) * _STEP)
    return _signed(word)


def gumbel(streams: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, finite: streams ``[R]``, token_ids ``[C]`` or ``[R, C]``, int64 -> ``[R, C]`` float32."""
    words = token_ids * _signed(_STEP) + streams[:, None]  # wraps at 64 bits, as it should
    words = _xor_shifted(words, _SHIFTS[0]).mul_(_signed(_MULTIPLIERS[0]))
    words = _xor_shifted(words, _SHIFTS[1]).mul_(_signed(_MULTIPLIERS[1]))
    words = _xor_shifted(words, _SHIFTS[2])
    uniform = _logical_shift(words, 64 - _BITS).float().add_(0.5).mul_(2.0**-_BITS).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def streams_of(draws: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
    """The streams of draws given as (key, position): ``[R]`` int64."""
    return torch.tensor([stream(key, position) for key, position in draws], dtype=torch.int64, device=device)


def _mix(word: int) -> int:
    """SplitMix64's output function, on Python's integers."""
    word &= _MASK
    word = ((word ^ (word >> _SHIFTS[0])) * _MULTIPLIERS[0]) & _MASK
    word = ((word ^ (word >> _SHIFTS[1])) * _MULTIPLIERS[1]) & _MASK
    return word ^ (word >> _SHIFTS[2])


def _signed(word: int) -> int:
    """The int64 with the same bits."""
    return word - 2**64 if word >= 2**63 else word


def _xor_shifted(words: Tensor, shift: int) -> Tensor:
    return words.bitwise_xor_(_logical_shift(words, shift))


def _logical_shift(words: Tensor, shift: int) -> Tensor:
    """``words >> shift`` with zeros shifted in; torch's own shift keeps the sign."""
    return (words >> shift).bitwise_and_(2 ** (64 - shift) - 1)

"""The order of rows: a permutation that is computed place by place, so that no list of all rows is ever held."""

import hashlib

ROUNDS = 6
_MASK = 2**64 - 1


class Permutation:
    """The numbers 0..n-1 in an order that ``key`` fixes; each place is computed on its own.

    A Feistel network permutes the numbers of the least even count of bits that holds n; what falls outside 0..n-1 is
    permuted again until it does not (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
        n: how many numbers, at least 1.
        key: whole numbers, such as a seed and an epoch; other keys give other orders.
    """

    def __init__(self, n: int, *key: int):
        self.n = n
        self._bits = max(3, (max(n - 1, 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.n:
            raise IndexError(f"place must be at least 0 and below {self.n}, got {place}")
        number = self._step(place)
        while number >= self.n:
            number = self._step(number)
        return number

    def _step(self, number: int) -> int:
        bits, low = self._bits, (1 << self._bits) - 1
        left, right = number >> bits, number & low
        for key in self._keys:
            left, right = right, left ^ (_scrambled(right ^ key) & low)
        return left << bits | right


def _scrambled(x: int) -> int:
    """A 64-bit number with all its bits mixed (the finish of SplitMix64: Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)

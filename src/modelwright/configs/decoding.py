"""What decoding must know of a model, told from its config: what a layer caches, and how long a sequence may be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheLayout:
    """What each of `layers` layers keeps of one token, whoever keeps it: the engine's pages, or a graph's inputs.

    Grouped attention keeps, for each of `heads`, a key of `keys` numbers and a value of `values` numbers. Latent
    attention, where `heads` is None, keeps one rotated key of `keys` numbers and one latent of `values` numbers.
    """

    layers: int
    heads: int | None
    keys: int
    values: int

    @property
    def vectors(self) -> int:
        """How many keys, and as many values, all layers keep of a token."""
        return self.layers * (self.heads or 1)

    @property
    def numbers(self) -> int:
        """How many numbers all layers keep of a token."""
        return self.vectors * (self.keys + self.values)

    def of_ranks(self, ranks: int) -> "CacheLayout":
        """What one of `ranks` keeps: its part of the heads, at least one. A latent has no heads, and each keeps it."""
        if self.heads is None:
            return self
        return CacheLayout(self.layers, max(1, self.heads // ranks), self.keys, self.values)


@dataclass(frozen=True)
class DecodingRules:
    """How a decoder reads a sequence, token by token.

    Attributes:
        context: how many tokens a sequence may have, including the last, which is drawn and never read.
        trained_length: a sequence of more tokens is rotated by its own length; None where no length changes rotation.
        attends_to_padding: whether a padding token in a prompt is attended to like any other.
        upcasts: whether the products of attention are computed in fp32.
    """

    context: int
    trained_length: int | None = None
    attends_to_padding: bool = False
    upcasts: bool = False

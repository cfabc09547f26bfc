"""The sizes of a decoder's layers, from which parameters, cached numbers and FLOPs follow; it knows no family.

FLOPs are those of matrix products, `2 * m * n * k` each, as `torch.utils.flop_counter.FlopCounterMode` counts them:
norms, activations and rotations are left out, and a causal product counts like a full one.
"""

from dataclasses import dataclass, field
from typing import Literal

from modelwright.planner.computing import Computing
from modelwright.planner.parts import ByPart
from modelwright.planner.stored import WeightFormat

Cut = Literal["outputs", "inputs"]


@dataclass(frozen=True)
class Linear:
    """`inputs` to `outputs`; `cut` is the side that tensor parallelism divides, None where each rank holds all of it.

    Cut by outputs a bias is divided with them; cut by inputs each rank's product is a part of the sum and the bias
    stays whole. A matrix that is `kept` is not quantized where others are. `name` is what it is usually called on disk.
    """

    inputs: int
    outputs: int
    bias: bool = False
    cut: Cut | None = None
    kept: bool = False
    name: str = ""

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.held(1)

    def held(self, tensor: int) -> int:
        """Parameters on one of `tensor` ranks."""
        ways = tensor if self.cut else 1
        bias = self.outputs * self.bias
        return self.inputs * self.outputs // ways + (bias // ways if self.cut == "outputs" else bias)

    @property
    def flops(self) -> int:
        """Of one row."""
        return 2 * self.inputs * self.outputs


def _held(linears: tuple[Linear, ...], tensor: int) -> int:
    return sum(linear.held(tensor) for linear in linears)


def _flops(linears: tuple[Linear, ...]) -> int:
    return sum(linear.flops for linear in linears)


@dataclass(frozen=True)
class GroupedAttention:
    """`heads` query heads over `kv_heads` key and value heads, all `head_dim` wide; it caches keys and values.

    With `turned_by_matrix` RoPE multiplies queries and keys by a matrix instead of slicing them.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    turned_by_matrix: bool = False

    @property
    def norms(self) -> int:
        """Parameters of norms within: there are none."""
        return 0

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The projections q, k, v and output."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        into = tuple(Linear(self.dim, width, self.qkv_bias, "outputs", name=name) for name, width in widths.items())
        return (*into, Linear(q, self.dim, self.out_bias, "inputs", name="o_proj"))

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token; tensor parallelism divides them with the key heads, down to one head a rank."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def mha_kv_numbers(self) -> int:
        """Numbers that one key and one value for every query head would take."""
        return 2 * self.heads * self.head_dim

    def held_kv_numbers(self, tensor: int) -> int:
        """Numbers cached per token on one of `tensor` ranks."""
        return 2 * max(self.kv_heads // tensor, 1) * self.head_dim

    def flops(self, tokens: int, keys: int) -> int:
        """Of `tokens` queries of one sequence over `keys` keys, their own included."""
        products = 2 * self.heads * tokens * keys * 2 * self.head_dim
        return tokens * (_flops(self.linears) + self.turned_flops) + products

    @property
    def turned_flops(self) -> int:
        """Of turning one token's queries and keys by a matrix, which is no weight."""
        turned = (self.heads + self.kv_heads) * self.head_dim if self.turned_by_matrix else 0
        return 2 * turned * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (arXiv:2405.04434, section 2.1); it caches a latent and one rotated key.

    Per head, `nope` and `rope` are the unrotated and the rotated width of queries and keys, `v_dim` the value's;
    `kv_rank` is the latent's width, `q_rank` that of the query's own, None for a direct projection.
    """

    dim: int
    heads: int
    nope: int
    rope: int
    v_dim: int
    kv_rank: int
    q_rank: int | None = None
    bias: bool = False

    @property
    def norms(self) -> int:
        """Parameters of the norms of the two latents."""
        return self.kv_rank + (self.q_rank or 0)

    @property
    def turned_flops(self) -> int:
        """Of turning by a matrix: queries and keys are turned without one."""
        return 0

    @property
    def kv_heads(self) -> int:
        """The latent is one head, which every rank of tensor parallelism holds."""
        return 1

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every projection: of the query, into the latent, out of it, and the output."""
        return (*self._every_token, self._kv_b)

    @property
    def _every_token(self) -> tuple[Linear, ...]:
        """The projections that run once per new token whichever way attention is computed."""
        q_width = self.heads * (self.nope + self.rope)
        q = (Linear(self.dim, q_width, cut="outputs", name="q_proj"),)
        if self.q_rank is not None:
            into = Linear(self.dim, self.q_rank, self.bias, name="q_a_proj")
            q = (into, Linear(self.q_rank, q_width, cut="outputs", name="q_b_proj"))
        kv_a = Linear(self.dim, self.kv_rank + self.rope, self.bias, name="kv_a_proj_with_mqa")
        return (*q, kv_a, Linear(self.heads * self.v_dim, self.dim, self.bias, "inputs", name="o_proj"))

    @property
    def _kv_b(self) -> Linear:
        """Out of the latent; kept, because absorbed attention multiplies with its numbers."""
        width = self.heads * (self.nope + self.v_dim)
        return Linear(self.kv_rank, width, cut="outputs", kept=True, name="kv_b_proj")

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token."""
        return self.kv_rank + self.rope

    @property
    def mha_kv_numbers(self) -> int:
        """Numbers that the expanded keys and values of every head would take."""
        return self.heads * (self.nope + self.rope + self.v_dim)

    def held_kv_numbers(self, tensor: int) -> int:
        """Numbers cached per token on one of `tensor` ranks: the latent belongs to all heads and is not divided."""
        return self.kv_numbers

    def flops(self, tokens: int, keys: int) -> int:
        """Of `tokens` queries of one sequence over `keys` keys, their own included, on the path that would be taken."""
        attending = self._absorbed(tokens, keys) if self.absorbs(tokens, keys) else self._expanded(tokens, keys)
        return tokens * _flops(self._every_token) + attending

    def absorbs(self, tokens: int, keys: int) -> bool:
        """Whether attention runs in the latent space: when some keys are cached and that multiplies less.

        The rotated part is left out of the comparison, as it costs both paths the same.
        """
        wide = self.nope + self.v_dim
        expanding = keys * wide * (self.kv_rank + tokens)
        absorbing = tokens * self.kv_rank * (wide + 2 * keys)
        return tokens < keys and absorbing < expanding

    def _expanded(self, tokens: int, keys: int) -> int:
        """Keys and values of every cached token rebuilt, then ordinary attention."""
        widths = self.nope + self.rope + self.v_dim
        return keys * self._kv_b.flops + 2 * self.heads * tokens * keys * widths

    def _absorbed(self, tokens: int, keys: int) -> int:
        """The query moved into the latent space, attention there, the result moved out."""
        widths = 2 * self.kv_rank + self.rope
        return tokens * self._kv_b.flops + 2 * self.heads * tokens * keys * widths


@dataclass(frozen=True)
class FeedForward:
    """`dim` to `width` and back: three matrices when `gated`, else two; each has a bias where `bias`."""

    dim: int
    width: int
    gated: bool = True
    bias: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Gate (where there is one), up and down."""
        names = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        into = tuple(Linear(self.dim, self.width, self.bias, "outputs", name=name) for name in names)
        return (*into, Linear(self.width, self.dim, self.bias, "inputs", name="down_proj"))

    def held(self, tensor: int = 1) -> int:
        """Parameters on one of `tensor` ranks."""
        return _held(self.linears, tensor)

    @property
    def flops(self) -> int:
        """Of one token."""
        return _flops(self.linears)


@dataclass(frozen=True)
class ExpertFeedForward:
    """A router, `experts` feed-forwards of which it picks `chosen` per token, and a `shared` one that all tokens visit.

    `router` scores the experts (each rank holds all of it); `shared_gate` weighs the shared one, where there is such a
    gate.
    """

    experts: int
    chosen: int
    expert: FeedForward
    router: Linear
    shared: FeedForward | None = None
    shared_gate: Linear | None = None

    @property
    def gates(self) -> tuple[Linear, ...]:
        """The router and the shared experts' gate."""
        return (self.router,) if self.shared_gate is None else (self.router, self.shared_gate)


@dataclass(frozen=True)
class Layer:
    """One decoder layer; `norms` are the parameters of the norms around its two halves.

    `stored` are the formats of the matrices that another program has quantized, each under its part of the layer
    (`attention`, `dense`, `experts`, `shared`) and its name. `computing` decides what training keeps of it.
    """

    attention: GroupedAttention | LatentAttention
    feed_forward: FeedForward | ExpertFeedForward
    norms: int
    stored: tuple[tuple[str, WeightFormat], ...] = ()
    computing: Computing = field(default_factory=Computing)

    def formats(self, part: str) -> dict[str, WeightFormat]:
        """Of the matrices of a part of the layer that are stored quantized, by their names."""
        found = ((*key.partition("."), kind) for key, kind in self.stored)
        return {name: kind for within, _, name, kind in found if within == part}

    @property
    def parts(self) -> dict[str, tuple[Linear, ...]]:
        """The matrices of each part; of the routed experts those of one."""
        part = self.feed_forward
        if isinstance(part, FeedForward):
            return {"attention": self.attention.linears, "dense": part.linears}
        shared = {"shared": part.shared.linears} if part.shared else {}
        return {"attention": self.attention.linears, "experts": part.expert.linears, **shared}

    @property
    def has_experts(self) -> bool:
        """Whether the feed-forward routes to experts."""
        return isinstance(self.feed_forward, ExpertFeedForward)

    @property
    def parameters(self) -> ByPart:
        """Every parameter of the layer."""
        return self.held()

    @property
    def activated(self) -> ByPart:
        """The parameters that one token meets: all but the experts it does not choose."""
        if not isinstance(self.feed_forward, ExpertFeedForward):
            return self.parameters
        return self._with(self.feed_forward.chosen, tensor=1)

    def held(self, tensor: int = 1, expert: int = 1) -> ByPart:
        """Parameters on one rank of `tensor` ways that cut each matrix and `expert` ways that deal out the experts.

        A routed expert's own matrices are cut too. Norms, routers and the projections into latents are on every rank.
        """
        routed = self.feed_forward.experts // expert if isinstance(self.feed_forward, ExpertFeedForward) else 0
        return self._with(routed, tensor)

    def _with(self, routed: int, tensor: int) -> ByPart:
        around = ByPart(attention=_held(self.attention.linears, tensor), norms=self.norms + self.attention.norms)
        part = self.feed_forward
        if isinstance(part, FeedForward):
            return around + ByPart(dense_ffn=part.held(tensor))
        return around + ByPart(
            routed_experts=routed * part.expert.held(tensor),
            shared_experts=part.shared.held(tensor) if part.shared else 0,
            router=_held(part.gates, tensor),
        )

    def flops(self, tokens: int, keys: int) -> ByPart:
        """Of `tokens` new tokens of one sequence that see `keys` keys, their own included."""
        attention, part = ByPart(attention=self.attention.flops(tokens, keys)), self.feed_forward
        if isinstance(part, FeedForward):
            return attention + ByPart(dense_ffn=tokens * part.flops)
        return attention + ByPart(
            routed_experts=tokens * part.chosen * part.expert.flops,
            shared_experts=tokens * part.shared.flops if part.shared else 0,
            router=tokens * _flops(part.gates),
        )

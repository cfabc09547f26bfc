"""How a model is dealt out to ranks: degrees of parallelism, the rules they obey, and the layers of each stage."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

from modelwright.errors import ConfigError
from modelwright.planner.counts import Counts
from modelwright.planner.shapes import ExpertFeedForward, FeedForward, GroupedAttention, Layer


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism over `ranks` devices: their product, without `expert`, which is carved out of the others.

    `data` ranks read batches of their own, `model` ranks cut each matrix and the heads, `pipeline` stages hold
    consecutive layers, `context` ranks hold slices of each sequence, and `expert` ranks share out the routed experts,
    each of which `expert_model` ranks cut again. In training, `sharded` deals weights, gradients and optimizer states
    out over the data and context ranks, which gather a layer's weights when its turn comes. `sequence_parallel` divides
    what tensor parallelism would keep whole on each of its ranks, and with `whole_gradients` sharded ranks sum whole
    gradients over the micro-batches of a step. `stage_layers` is None where layers are dealt evenly.
    """

    data: int = 1
    model: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_model: int = 1
    sharded: bool = False
    sequence_parallel: bool = False
    whole_gradients: bool = False
    micro_batches: int | None = None
    stage_layers: tuple[int, ...] | None = None

    @property
    def ranks(self) -> int:
        """How many devices it takes."""
        return self.data * self.model * self.pipeline * self.context

    @property
    def replicas(self) -> int:
        """How many ranks hold the same weights outside the experts."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """How many ranks hold the same routed experts."""
        return self.data * self.context * self.model // (self.expert * self.expert_model)

    def stages(self, layers: int) -> tuple[range, ...]:
        """The layers of each pipeline stage; dealt evenly, the first stages take what is left over."""
        share, extra = divmod(layers, self.pipeline)
        counts = self.stage_layers or tuple(share + (stage < extra) for stage in range(self.pipeline))
        ends = list(accumulate(counts))
        return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))

    def __str__(self) -> str:
        degrees = f"data {self.data} x model {self.model} x pipeline {self.pipeline} x context {self.context}"
        return f"{degrees}, expert {self.expert}{', sharded' * self.sharded}"


def check_layout(counts: Counts, layout: Layout) -> None:
    """Raise a ConfigError for the first size of the model that the layout does not divide."""
    if layout.pipeline > len(counts.layers):
        raise ConfigError(f"pipeline ({layout.pipeline}) must not exceed the number of layers ({len(counts.layers)})")
    ways = layout.data * layout.context * layout.model
    if ways % (layout.expert * layout.expert_model):
        raise ConfigError(
            f"data x context x model ({ways}) must be divisible by the ranks that share the experts "
            f"({layout.expert} x {layout.expert_model})"
        )
    for layer, _ in groupby(counts.layers):
        for name, size, ways in (*_cut_by_model(layer, layout), *_cut_by_expert(layer, layout)):
            if size % ways:
                raise ConfigError(f"{name} ({size}) must be divisible by {ways}, the ranks that {layout} cuts it into")


def _cut_by_model(layer: Layer, layout: Layout) -> Iterator[tuple[str, int, int]]:
    """(what, its size, into how many it is cut): heads, key heads that are not one latent, and widths."""
    attention, part = layer.attention, layer.feed_forward
    yield "the number of attention heads", attention.heads, layout.model
    if isinstance(attention, GroupedAttention):
        yield "the number of key-value heads", attention.kv_heads, layout.model
    if isinstance(part, FeedForward):
        yield "the feed-forward width", part.width, layout.model
    elif part.shared:
        yield "the shared experts' width", part.shared.width, layout.model


def _cut_by_expert(layer: Layer, layout: Layout) -> Iterator[tuple[str, int, int]]:
    if isinstance(layer.feed_forward, ExpertFeedForward):
        yield "the number of experts", layer.feed_forward.experts, layout.expert
        yield "the experts' width", layer.feed_forward.expert.width, layout.expert_model


def candidates(counts: Counts, ranks: int, *, training: bool, expert: int | None = None) -> Iterator[Layout]:
    """Every layout of exactly `ranks` devices that divides the model, the least communication first.

    The order follows how much a rank waits for others:

    1. *data* costs nothing when serving and one reduction of the gradients per step in training: as much of it as
       possible;
    2. *expert* exchanges the tokens twice in each layer that has experts;
    3. *sharded* data (training only) gathers each layer's weights for every pass;
    4. *model* sums the stream of all tokens twice in each layer;
    5. *pipeline* hands the stream over once a stage, and leaves stages idle while a batch fills and drains it;
    6. *context* moves keys and values between all its ranks in each layer: last.

    So the degrees that come late are kept as small as fitting allows, the last one first. `expert`, where the config
    states it, is kept.
    """
    experts = max((_experts(layer) for layer, _ in groupby(counts.layers)), default=0)
    for context in _divisors(ranks):
        for pipeline in (stages for stages in _divisors(ranks // context) if stages <= len(counts.layers)):
            for model in _divisors(ranks // context // pipeline):
                data = ranks // context // pipeline // model
                shared = [ways for ways in _divisors(data * context) if experts and experts % ways == 0] or [1]
                for sharded in (False, True)[: 2 if training and data * context > 1 else 1]:
                    for ways in shared if expert is None else [expert]:
                        cut = model if experts else 1
                        layout = Layout(data, model, pipeline, context, ways, cut, sharded)
                        if _divides(counts, layout):
                            yield layout


def _experts(layer: Layer) -> int:
    return layer.feed_forward.experts if isinstance(layer.feed_forward, ExpertFeedForward) else 0


def _divides(counts: Counts, layout: Layout) -> bool:
    try:
        check_layout(counts, layout)
    except ConfigError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    """Every divisor, from small to large."""
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})

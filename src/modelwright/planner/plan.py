"""`plan`: what a model costs on given devices, from its config alone; it prints nothing and draws nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from modelwright.configs import CheckedConfig
from modelwright.configs.quantization import READ_PROGRAMS, foreign_quantization, program_of
from modelwright.configs.tiling import Size
from modelwright.errors import ConfigError, RequestError
from modelwright.families import family_of, resolve
from modelwright.planner.counting import count
from modelwright.planner.counts import Counts
from modelwright.planner.device import Devices
from modelwright.planner.foreign import read_foreign
from modelwright.planner.layout import Layout, candidates, check_layout
from modelwright.planner.memory import (
    OPTIMIZER_BYTES,
    Memory,
    Workload,
    kv_bytes_per_token,
    peak_memory,
    stage_memory,
    weight_bytes,
)
from modelwright.planner.precision import BYTES_OF, KV_BYTES_OF, QUANTS, Precision
from modelwright.planner.settings import RunSettings, explicit_attention, precision_of
from modelwright.planner.shapes import ExpertFeedForward
from modelwright.planner.stored import StoredWeights

DEFAULT_CONTEXT = 4096
_BEYOND = 2**40
"""Tokens or sequences at which the search for the largest that fits ends."""


@dataclass(frozen=True)
class ImageTokens:
    """A picture of `size` (width, height) in pixels, cut into `tiles`, takes `tokens` of the context."""

    size: Size
    tiles: int
    tokens: int


@dataclass(frozen=True)
class Rank:
    """What each of the ranks `first` to `last` holds: one pipeline stage. `experts` are those of each expert layer."""

    first: int
    last: int
    layers: range
    heads: int
    kv_heads: int
    experts: int
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """What a model costs. Bytes, parameters and FLOPs are whole numbers.

    Attributes:
        counts: the model's sizes; parameters, activated parameters and FLOPs follow from it.
        max_context: the context that the model was made for, in tokens.
        precision, work, layout: what was planned for; `work` says whether serving or training.
        image: what a picture takes, None where none was asked about.
        serving, training, recomputing: memory of the fullest rank when serving the context and batch, training on them,
            and training with every layer recomputed; `memory` is one of them, unless only some layers are recomputed.
        ranks: what each rank holds, one entry for each pipeline stage.
        devices: what it must fit; None leaves `fits`, `largest_context` and `largest_batch` None.
        fits: whether the fullest rank does.
        largest_context, largest_batch: the largest that fits this layout, the other as planned; 0 where nothing does.
        without_effect: fields of the config that do nothing on torch, each with the reason.
        stored: how another program has quantized the weights, None where none has.
    """

    counts: Counts
    max_context: int
    precision: Precision
    work: Workload
    layout: Layout
    image: ImageTokens | None
    serving: Memory
    training: Memory
    recomputing: Memory
    ranks: tuple[Rank, ...]
    devices: Devices | None
    fits: bool | None
    largest_context: int | None
    largest_batch: int | None
    without_effect: tuple[str, ...]
    stored: StoredWeights | None = None

    @property
    def memory(self) -> Memory:
        """Of the fullest rank, doing what was planned for."""
        return max((rank.memory for rank in self.ranks), key=lambda memory: memory.total)

    @property
    def quantized_by(self) -> str | None:
        """What quantizes the weights that are planned: a type of ours, or what another program calls its method."""
        stored = self.stored.method if self.stored is not None and self.precision.as_stored else None
        return self.precision.quant or stored

    @property
    def weights(self) -> dict[str, int]:
        """Bytes of all weights on one device in each type and quantization; a quantized model's rest is as planned."""
        plain = {dtype: weight_bytes(self.counts, Precision.uniform(dtype)) for dtype in BYTES_OF}
        own = replace(self.precision, as_stored=False)
        made = {quant: weight_bytes(self.counts, replace(own, quant=quant)) for quant in QUANTS}
        if self.stored is None or not self.stored.groups:
            return plain | made
        as_stored = replace(self.precision, quant=None, as_stored=True)
        return plain | {f"{self.stored.method}, as stored": weight_bytes(self.counts, as_stored)} | made

    @property
    def kv_bytes_per_token(self) -> int:
        """What one more token of context adds to the cache of all layers."""
        return kv_bytes_per_token(self.counts, self.precision)

    @property
    def mha_kv_bytes_per_token(self) -> int:
        """What plain multi-head attention of the same heads would add, in the same type and without its scales."""
        return self.counts.mha_kv_numbers * KV_BYTES_OF[self.precision.kv]

    def memory_at(self, context: int) -> Memory:
        """Of the fullest rank, doing the same at another context."""
        return peak_memory(self.counts, self.layout, self.precision, replace(self.work, context=context))


def plan(
    config: CheckedConfig,
    *,
    context: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    quant: str | None = None,
    image: Size | None = None,
    devices: Devices | None = None,
    train: bool = False,
    optimizer: str = "adamw",
    recompute: bool | None = None,
    attention: str | None = None,
) -> Plan:
    """Reckon what the model of `config` costs.

    Args:
        context: tokens of each sequence, pictures included; by default those of the run's rows in training, else 4096,
            or the model's own where that is shorter.
        batch: sequences on each data-parallel rank; in training, of one micro-batch. By default the config's, else 1.
        dtype: `float32`, `bfloat16` or `float16`; by default the config's.
        kv_dtype: one of those, `fp8` or `int8`; by default the type that is computed in.
        quant: `fp8`, `int8` or `int4` weights.
        image: (width, height) in pixels of a picture in each sequence.
        devices: what it must fit.
        train: plan training, not serving; `optimizer` and `recompute` say how.
        attention: `fused` or `eager`; by default the config's.

    Raises:
        RequestError: an option is out of its range, or makes no sense for this model.
        ConfigError: the planner does not know this model, or its layout does not divide it or fill the devices.
    """
    counts = count(config)
    stated: RunSettings = resolve(family_of(config).run_settings)(config)
    section = foreign_quantization(config)
    if train and program_of(section) in READ_PROGRAMS:
        section = None  # a run reads the numbers that its weights stand for
    foreign = None if section is None else read_foreign(section)
    if foreign is not None:
        counts = counts.stored_as(foreign)
    precision = precision_of(config, stated.types, dtype, kv_dtype, quant, foreign)
    if train and (precision.quant or precision.as_stored):
        kind = precision.quant or (foreign.method if foreign else "")
        raise RequestError(f"quant ({kind}) cannot be trained: weights must be whole to learn", field="quant")
    if optimizer not in OPTIMIZER_BYTES:
        names = ", ".join(OPTIMIZER_BYTES)
        raise RequestError(f"optimizer must be one of {names}, got {optimizer!r}", field="optimizer")
    limit = _max_context(config)
    seen = None if image is None else _image_tokens(config, counts, image)
    work = Workload(
        context=_context(stated.row if context is None and train else context, limit, counts, seen),
        batch=_batch(stated.batch, batch),
        optimizer=optimizer if train else None,
        recompute=stated.recompute if recompute is None else recompute,
        explicit=explicit_attention(stated, attention),
        tiles=seen.tiles if seen else 0,
    )
    layout = _layout(stated, counts, precision, work, devices)
    trained = replace(precision, quant=None, as_stored=False)
    training = [
        peak_memory(counts, layout, trained, replace(work, optimizer=optimizer, recompute=again))
        for again in (False, True)
    ]
    needed = peak_memory(counts, layout, precision, work).total
    return Plan(
        counts=counts,
        max_context=limit,
        precision=precision,
        work=work,
        layout=layout,
        image=seen,
        serving=peak_memory(counts, layout, precision, replace(work, optimizer=None)),
        training=training[0],
        recomputing=training[1],
        ranks=_ranks(counts, layout, precision, work),
        devices=None if devices is None else replace(devices, count=layout.ranks),
        fits=None if devices is None else needed <= devices.memory,
        largest_context=_largest(counts, layout, precision, work, devices, "context", counts.positions or _BEYOND),
        largest_batch=_largest(counts, layout, precision, work, devices, "batch", _BEYOND),
        without_effect=_without_effect(config, counts, foreign),
        stored=foreign,
    )


def _without_effect(config: CheckedConfig, counts: Counts, foreign: StoredWeights | None) -> tuple[str, ...]:
    """The config's fields, and what of another program's quantization is not counted."""
    unknown = () if foreign is None else foreign.unknown
    if foreign is not None and foreign.groups and counts.vision is not None:
        unknown = (*unknown, "tower and projector are counted in the type stated")
    lines = tuple(f"{name} ({why})" for name, why in config.fields_without_effect().items())
    return (*lines, *(f"quantization_config ({why})" for why in unknown))


def _max_context(config: CheckedConfig) -> int:
    text: Any = config.get_text_config()
    return text.max_position_embeddings


def _batch(stated: int, asked: int | None) -> int:
    if asked is not None:
        _check_count("batch", asked)
    return asked or stated


def _check_count(name: str, asked: int) -> None:
    if not 1 <= asked <= _BEYOND:
        rule = "at least 1" if asked < 1 else f"at most {_BEYOND}"
        raise RequestError(f"{name} must be {rule}, got {asked}", field=name)


def _image_tokens(config: CheckedConfig, counts: Counts, size: Size) -> ImageTokens:
    if counts.vision is None:
        raise RequestError(f"image needs a model that sees pictures, and {config.model_type} reads none", field="image")
    if min(size) < 1:
        raise RequestError(f"image must be at least 1x1 pixels, got {size[0]}x{size[1]}", field="image")
    return ImageTokens(size, counts.vision.tiles(size), counts.vision.image_tokens(size))


def _context(asked: int | None, limit: int, counts: Counts, image: ImageTokens | None) -> int:
    context = min(DEFAULT_CONTEXT, limit) if asked is None else asked
    _check_count("context", context)
    if counts.positions and context > counts.positions:
        raise RequestError(
            f"context ({context}) must not exceed the positions that the model has learned ({counts.positions})",
            field="context",
        )
    if image and context < image.tokens:
        raise RequestError(f"context ({context}) must hold the tokens of the picture ({image.tokens})", field="context")
    return context


def _layout(
    stated: RunSettings, counts: Counts, precision: Precision, work: Workload, devices: Devices | None
) -> Layout:
    """The config's own layout; else the first that fits; else the one that comes closest to it."""
    given, experts = stated.layout, stated.expert_ranks
    asked = None if devices is None else devices.count
    if given is not None:
        check_layout(counts, given)
        if asked not in (None, given.ranks):
            raise ConfigError(
                f"devices ({asked}) must be as many as parallel_config asks for ({given.ranks}: {given})",
                field="devices",
            )
        return given
    if devices is None:
        return Layout()
    best, least = None, 0
    for layout in candidates(counts, asked or 1, training=work.optimizer is not None, expert=experts):
        needed = peak_memory(counts, layout, precision, work).total
        if needed <= devices.memory:
            return layout
        if best is None or needed < least:
            best, least = layout, needed
    if best is None:
        raise ConfigError(f"no layout of {asked or 1} devices with ep_size {experts} divides the model")
    return best


def _ranks(counts: Counts, layout: Layout, precision: Precision, work: Workload) -> tuple[Rank, ...]:
    """Stages are the outermost degree: each is a run of consecutive ranks."""
    size = layout.ranks // layout.pipeline
    return tuple(
        Rank(
            first=stage * size,
            last=(stage + 1) * size - 1,
            layers=layers,
            heads=counts.layers[layers[0]].attention.heads // layout.model,
            kv_heads=max(counts.layers[layers[0]].attention.kv_heads // layout.model, 1),
            experts=max(_experts(counts, index) for index in layers) // layout.expert,
            memory=stage_memory(counts, layout, stage, precision, work),
        )
        for stage, layers in enumerate(layout.stages(len(counts.layers)))
    )


def _experts(counts: Counts, index: int) -> int:
    part = counts.layers[index].feed_forward
    return part.experts if isinstance(part, ExpertFeedForward) else 0


def _largest(
    counts: Counts,
    layout: Layout,
    precision: Precision,
    work: Workload,
    devices: Devices | None,
    name: str,
    most: int,
) -> int | None:
    """The largest `context` or `batch`, up to `most`, that fits with all else as planned; 0 where 1 does not."""
    if devices is None:
        return None

    def fits(value: int) -> bool:
        changed: dict[str, Any] = {name: value}
        return peak_memory(counts, layout, precision, replace(work, **changed)).total <= devices.memory

    return _last_true(fits, most)


def _last_true(holds: Callable[[int], bool], most: int) -> int:
    """The largest whole number from 1 to `most` at which `holds` is true, if it is true up to there; else 0."""
    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low

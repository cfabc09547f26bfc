"""A model rounded to int4 by what its layers meet while it reads: decoder layer by decoder layer, in their order.

A layer's inputs are what the layers before it make of the calibration when they are rounded already. Only one layer's
Hessians are held at a time, and what enters it. Leaves out the rounding itself (``ops/gptq.py`` and ``ops/refine.py``)
and reading files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from modelwright.checkpoints.rounded_layers import check_inputs, matrices_of, replace_layer, store
from modelwright.configs.engine import QuantSettings
from modelwright.errors import ConfigError, RequestError
from modelwright.layers import Experts
from modelwright.ops.experts import expert_hidden
from modelwright.ops.gptq import gptq
from modelwright.ops.linear import linear
from modelwright.ops.refine import refine
from modelwright.ops.stored import Stored
from modelwright.ops.weight_only import Int4Weight

LayerProgress = Callable[[int, int], None]
"""Told how many layers are done, and how many there are."""


@runtime_checkable
class HoldsLayers(Protocol):
    """A decoder whose layers run one after the other."""

    def stack(self) -> nn.ModuleList:
        """The layers in their order."""
        ...


@torch.no_grad()
def calibrate_layers(
    model: Any, settings: QuantSettings, batches: Sequence[Mapping[str, Tensor]], progress: LayerProgress | None = None
) -> None:
    """Replace the matrices of ``model`` in place, as ``quantize_layers`` does, rounded by :func:`gptq` and refined.

    An expert that fewer tokens chose than it has inputs is rounded to nearest.

    Args:
        batches: keyword arguments of ``model`` for some passes without padding.
        progress: called after each layer.

    Raises:
        ConfigError: as ``quantize_layers``; or a model whose layers do not say their order.
        RequestError: fewer tokens than a layer has inputs, or a layer that meets numbers that are not finite.
    """
    matrices = matrices_of(model, settings)
    for name, module in matrices.items():
        for part, inputs in _inputs_of(name, module).items():
            check_inputs(part, inputs, settings)
    training = model.training
    model.eval()
    try:
        layers = _layers_of(model)
        calls = _first_calls(model, next(iter(layers.values())), batches)
        _check_tokens(calls, matrices)
        for number, (prefix, layer) in enumerate(layers.items(), start=1):
            own = {name: module for name, module in matrices.items() if name.startswith(f"{prefix}.")}
            _replace(model, own, settings, partial(_passed, layer, calls))
            calls = [replace(call, x=x) for call, x in zip(calls, _passed(layer, calls), strict=True)]
            if progress is not None:
                progress(number, len(layers))
        rest = {
            name: module for name, module in matrices.items() if not name.startswith(tuple(f"{p}." for p in layers))
        }
        if rest:  # the head
            _replace(model, rest, settings, lambda: [model(**batch, use_cache=False) for batch in batches])
    finally:
        model.train(training)


def _inputs_of(name: str, module: Any) -> dict[str, int]:
    """How many inputs each weight of a layer has."""
    if isinstance(module, Experts):
        stacks = {"gate_up_proj": module.gate_up_proj, "down_proj": module.down_proj}
        return {f"{name}.{stack}": weight.shape[-1] for stack, weight in stacks.items()}
    return {name: module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0]}


def _layers_of(model: nn.Module) -> dict[str, nn.Module]:
    for module in model.modules():
        if isinstance(module, HoldsLayers):
            stack = module.stack()
            names = {layer: name for name, layer in model.named_modules()}
            return {names[layer]: layer for layer in stack if layer is not None}
    raise ConfigError(f"{type(model).__name__} does not say in which order its layers run, as calibration asks")


@dataclass(frozen=True)
class _Call:
    """What a layer is given in one pass: ``x`` ``[batch, tokens, dim]``, and what all layers are."""

    x: Tensor
    around: tuple[Any, ...]
    named: Mapping[str, Any]


def _passed(layer: nn.Module, calls: list[_Call]) -> list[Tensor]:
    """What a layer makes of each call, which is the next one's ``x``."""
    made = (layer(call.x, *call.around, **call.named) for call in calls)
    return [x[0] if isinstance(x, tuple) else x for x in made]


class _Begun(Exception):
    """The first layer is called: no more of this pass is needed."""


def _first_calls(model: Any, first: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[_Call]:
    calls: list[_Call] = []

    def begin(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(_Call(arguments[0], arguments[1:], named))
        raise _Begun

    hook = first.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        for batch in batches:
            with suppress(_Begun):
                model(**batch, use_cache=False)
    finally:
        hook.remove()
    return calls


def _check_tokens(calls: list[_Call], matrices: Mapping[str, nn.Module]) -> None:
    tokens = sum(call.x.shape[:-1].numel() for call in calls)
    for name, module in matrices.items():
        inputs = 1 if isinstance(module, Experts) else _inputs_of(name, module)[name]
        if tokens < inputs:
            raise RequestError(
                f"the calibration has {tokens:,} tokens, and {name} has {inputs:,} inputs: it takes as many tokens at "
                "least, and better ten times as many"
            )


def _replace(model: Any, own: Mapping[str, nn.Module], settings: QuantSettings, run: Callable[[], Any]) -> None:
    """Put rounded layers in the place of some, by what they meet in a run."""
    with _watched(own) as met:
        run()

    def rounding(name: str, weight: Tensor) -> Stored:
        if weight.dim() == 2:
            return _rounded(name, weight, met[name, None], settings)
        experts = [_rounded(name, expert, met.get((name, e)), settings) for e, expert in enumerate(weight)]
        offsets = [expert.offsets for expert in experts if expert.offsets is not None]
        return Int4Weight(
            torch.stack([expert.steps for expert in experts]),
            torch.stack([expert.scales for expert in experts]),
            torch.stack(offsets) if offsets else None,
        )

    for name in own:
        replace_layer(model, name, settings, rounding)


def _rounded(name: str, weight: Tensor, met: "_Inputs | None", settings: QuantSettings) -> Int4Weight:
    if met is None or met.rows < weight.shape[-1]:
        nearest = store(name, weight, settings)
        assert isinstance(nearest, Int4Weight)
        return nearest
    if not met.outer.isfinite().all():
        raise RequestError(f"{name} meets numbers that are not finite while the model reads the calibration")
    return refine(weight, met.outer, gptq(weight, met.outer, settings.group, offset=not settings.symmetric))


class _Inputs:
    """The sum of ``x x^T`` over the rows x that some layers read."""

    def __init__(self, width: int, device: torch.device):
        self.rows, self.outer = 0, torch.zeros(width, width, device=device)
        self._last: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Rows ``[..., width]``; the very tensor that was added last is another layer's, and counts once."""
        if x is self._last:
            return
        rows = x.flatten(0, -2).float()
        self.rows, self._last = self.rows + len(rows), x
        self.outer.addmm_(rows.T, rows)

    def are_of(self, x: Tensor) -> bool:
        """Whether that tensor was added last."""
        return x is self._last


Met = dict[tuple[str, int | None], _Inputs]
"""What a weight met: that of a layer, or of an expert by its number."""


@contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[Met]:
    """What some layers read from now on. Layers that are given the same tensor share their sums."""
    met: Met = {}

    def read(key: tuple[str, int | None], x: Tensor) -> None:
        if key not in met:
            last = next(reversed(met.values()), None)
            met[key] = last if last is not None and last.are_of(x) else _Inputs(x.shape[-1], x.device)
        met[key].add(x)

    def of_linear(name: str) -> Callable[..., None]:
        return lambda _, arguments: read((name, None), arguments[0])

    def of_experts(name: str) -> Callable[..., None]:
        def look(experts: Any, arguments: tuple[Tensor, ...]) -> None:
            x, _, chosen = arguments[:3]
            for e in chosen.unique().tolist():
                own = x[(chosen == e).any(dim=-1)].to(experts.compute or x.dtype)
                read((f"{name}.gate_up_proj", e), own)
                projected = linear(own, experts.gate_up_proj[e].to(own.dtype))
                read((f"{name}.down_proj", e), expert_hidden(projected, experts.act, experts.gated))

        return look

    hooks = [
        layer.register_forward_pre_hook((of_experts if isinstance(layer, Experts) else of_linear)(name))
        for name, layer in layers.items()
    ]
    try:
        yield met
    finally:
        for hook in hooks:
            hook.remove()

"""LoRA as peft writes it: its folder, and its pairs of matrices as those of a model's parameters, in both directions.

A pair is of a layer with one matrix, of an official layer that is a part of a stack here (``experts.3.gate_proj``), or
of a whole stack (peft's ``target_parameters``). Leaves out modules that compute with pairs (``layers/lora.py``).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from modelwright.checkpoints.folder import ADAPTER
from modelwright.checkpoints.places import Place, places_of
from modelwright.checkpoints.source import read_json
from modelwright.errors import CheckpointError
from modelwright.layers import Experts
from modelwright.layers.lora import STACKS
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.stored import inputs_of

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, BASE = ".lora_A.weight", ".lora_B.weight", ".base_layer"
_WRAPPED = ("modules_to_save", "original_module")
"""What a layer that trained whole is inside of peft's wrapper. ``save_embedding_layers`` writes it beside the layer's
own name, from which peft reads it."""
_REFUSED = {
    "use_dora": "its magnitudes cannot be folded in here",
    "use_qalora": "it is of weights in groups",
    "alora_invocation_tokens": "it acts on a part of a prompt alone",
    "trainable_token_indices": "it changes single tokens",
    "layer_replication": "it repeats layers",
    "lora_bias": "it has biases of its own",
}

_DRAWN = (None, True, False, "gaussian", "eva", "orthogonal")
"""Beginnings of a pair (``init_lora_weights``) that leave the weights beside it as they were."""


@dataclass(frozen=True)
class LoraPair:
    """LoRA of one matrix or of a stack of them: ``scale * b @ a`` is added.

    ``a`` is ``[rank, in]`` and ``b`` ``[out, rank]``; of a stack ``[experts, rank, in]`` and ``[experts, out, rank]``.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rows of one ``a``."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight, ``[..., out, in]``."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def packed(self) -> tuple[Tensor, Tensor]:
        """As peft stores it: of a stack ``[experts * rank, in]`` expert by expert, and ``[out, rank * experts]``.

        In the second the experts of each rank stand together: packing it as the first is an old mistake of many.
        """
        if self.a.dim() == 2:
            return self.a, self.b
        return self.a.flatten(0, 1), self.b.permute(1, 2, 0).flatten(1)

    @classmethod
    def unpacked(cls, a: Tensor, b: Tensor, scale: float, experts: int) -> Self:
        """The pair of a stack that peft stores as these two."""
        return cls(a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1).contiguous(), scale)

    def part(self, index: tuple[Any, ...]) -> Self:
        """The pair of one official layer, which lies at ``index`` of the weight."""
        if self.a.dim() == 2:
            return type(self)(self.a, self.b[index], self.scale)
        item, *rows = index
        return type(self)(self.a[item], self.b[item][tuple(rows)], self.scale)


@dataclass(frozen=True)
class LoraSettings:
    """What ``adapter_config.json`` says of ranks and scales, by peft's names."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read peft's object or the contents of its file."""
        values = config if isinstance(config, Mapping) else vars(config)
        patterns = [values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
        return cls(values["r"], values["lora_alpha"], bool(values.get("use_rslora")), *patterns)

    def rank_of(self, layer: str) -> int:
        """The rank that a layer is to have."""
        return of_pattern(layer, self.rank_pattern, self.r)

    def scale_of(self, layer: str, rank: int) -> float:
        """What multiplies the product of a layer's pair."""
        alpha = of_pattern(layer, self.alpha_pattern, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def of_pattern(layer: str, patterns: Mapping[str, Any], otherwise: Any) -> Any:
    """The value of the first pattern that the end of a layer's name matches, as in peft."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)


@dataclass(frozen=True)
class LoraFolder:
    """A folder that peft or `training` saved.

    Attributes:
        config: the contents of its ``adapter_config.json``.
        pairs: A and B by layer, as stored.
        others: tensors of layers that were trained whole, and biases, by their names in the model; and those of layers
            that have a pair, ``....base_layer.bias`` and ``....base_layer.weight``, the own weight, which peft saves
            with the adapter of a head.
    """

    folder: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    others: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it whole; what cannot be added to weights is refused.

        Raises:
            CheckpointError: there is no adapter, it is no LoRA in safetensors, or it holds what is no pair.
        """
        config = read_config(folder)
        pairs, others = _sorted(_read_tensors(folder / WEIGHTS), folder, config)
        return cls(folder, config, pairs, others)

    def check_ties(self, model: Any, folds: bool = False) -> None:
        """Raise a CheckpointError where a head and an embedding that are one matrix would have to become two.

        Args:
            folds: pairs are added to weights, and not computed beside them.
        """
        tied = tied_weights(model)
        whole = {name: tensor for name, tensor in self.others.items() if name in tied}
        alike = whole.keys() == tied and all(torch.equal(a, b) for a in whole.values() for b in whole.values())
        found = [] if alike or self.config.get("ensure_weight_tying") else sorted(whole)
        found += sorted(f"{layer}.weight" for layer in self.pairs if folds and f"{layer}.weight" in tied)
        if found:
            raise CheckpointError(
                f"the adapter in {self.folder} changes {found[0]} alone, which is one matrix with "
                f"{', '.join(sorted(tied - {found[0]}))} here: untie them (tie_word_embeddings: false), or train it "
                "with peft's ensure_weight_tying"
            )

    def whole(self, model: nn.Module) -> Iterator[tuple[str, Place, Tensor]]:
        """`others` with the places of ``model`` that they are for; stacks may be called by their own names, too.

        Raises:
            CheckpointError: the model has no such tensor, or of another shape.
        """
        own = {name: Place(name, (), tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
        places = own | places_of(model)
        for name, tensor in self.others.items():
            official = name.replace(BASE, "")
            if (place := places.get(official)) is None:
                raise CheckpointError(f"the adapter in {self.folder} is of {official}, which this model has not")
            if place.shape != tensor.shape:
                raise CheckpointError(
                    f"{name} has shape {list(tensor.shape)} in {self.folder}, and the model's {list(place.shape)}"
                )
            yield name, place, tensor

    def beside(self, model: nn.Module) -> dict[str, LoraPair]:
        """The pairs by the weights of ``model`` that they are beside.

        Raises:
            CheckpointError: a pair is of what the model has not, or of another shape or rank than is said.
        """
        if self.config.get("fan_in_fan_out") and not transposed_weights(model):
            raise CheckpointError(
                f"the adapter in {self.folder} has fan_in_fan_out: its weights lie the other way round"
            )
        settings, places, shapes = LoraSettings.of(self.config), places_of(model), weights_of(model)
        parts: dict[str, list[tuple[tuple[Any, ...], LoraPair]]] = {}
        found: dict[str, LoraPair] = {}
        for layer, (a, b) in self.pairs.items():
            name = f"{layer}.weight"
            place = places.get(name)
            if place is not None and place.index and place.parameter in shapes:
                pair = LoraPair(a, b, settings.scale_of(layer, len(a)))
                self._check(layer, pair, (place.shape[0], shapes[place.parameter][-1]), settings.rank_of(layer))
                parts.setdefault(place.parameter, []).append((place.index, pair))
                continue
            if name in shapes:
                pair = LoraPair(a, b, settings.scale_of(layer, len(a)))
                rank = settings.rank_of(layer)
            else:
                name, rank, pair = self._of_stack(layer, a, b, shapes, settings)
            self._check(layer, pair, shapes[name], rank)
            found[name] = pair
        for name, of_parts in parts.items():
            if name in found:
                raise CheckpointError(f"the adapter in {self.folder} has LoRA of {name} and of parts of it as well")
            found[name] = join_pairs(shapes[name], of_parts)
        return {name: found[name] for name in shapes if name in found}

    def _of_stack(
        self, layer: str, a: Tensor, b: Tensor, shapes: Mapping[str, tuple[int, ...]], settings: LoraSettings
    ) -> tuple[str, int, LoraPair]:
        """The stack that one of peft's nested wrappers is of (the last of a module's is the outermost) and its pair."""
        module, wrapped = layer, 0
        while module.endswith(BASE):
            module, wrapped = module.removesuffix(BASE), wrapped + 1
        named = tuple(self.config.get("target_parameters") or ())
        inside = [name for name, shape in shapes.items() if name.rpartition(".")[0] == module and len(shape) == 3]
        stacks = [name for name in inside if any(name == each or name.endswith(f".{each}") for each in named)]
        if wrapped >= len(stacks):
            raise CheckpointError(f"the adapter in {self.folder} is of {layer}, which this model has not")
        name = stacks[len(stacks) - 1 - wrapped]
        experts = shapes[name][0]
        if len(a) % experts or b.shape[1] != len(a):
            raise CheckpointError(
                f"the adapter in {self.folder} has {len(a)} rows in A and {b.shape[1]} columns in B of {name}, and "
                f"both must be the rank times the experts ({experts})"
            )
        scale = settings.scale_of(name, len(a) // experts)
        return name, settings.rank_of(name), LoraPair.unpacked(a, b, scale, experts)

    def _check(self, layer: str, pair: LoraPair, own: tuple[int, ...], rank: int) -> None:
        if pair.shape != own or pair.b.shape[-1] != pair.rank:
            raise CheckpointError(
                f"the adapter in {self.folder} has shape {list(pair.shape)} and ranks {pair.rank} and "
                f"{pair.b.shape[-1]} for {layer}, and the layer's weight has shape {list(own)}"
            )
        if pair.rank != rank:
            raise CheckpointError(
                f"the adapter of {layer} has rank {pair.rank}, and {self.folder / CONFIG} says {rank}"
            )


def weights_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weights that may have a pair, by name, with their shapes as ``[out, in]`` or ``[experts, out, in]``."""
    turned, found = transposed_weights(model), {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            found |= {f"{name}.{stack}": tuple(getattr(module, stack).shape) for stack in STACKS}
        elif isinstance(module, QuantizedExperts):
            for stack, stored in zip(STACKS, module.stored, strict=True):
                found[f"{name}.{stack}"] = (*stored.steps.shape[:2], inputs_of(stored))
        elif isinstance(module, nn.Linear | QuantizedLinear):
            found[f"{name}.weight"] = (module.out_features, module.in_features)
        elif f"{name}.weight" in turned:
            found[f"{name}.weight"] = tuple(model.get_parameter(f"{name}.weight").shape[::-1])
    return found


def tied_weights(model: Any) -> set[str]:
    """The names of the head's weight and of the embedding's, where they are one; nothing where they are two."""
    ends = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    embedding, head = (getattr(end() if end is not None else None, "weight", None) for end in ends)
    if embedding is None or embedding is not head:
        return set()
    return {name for name, each in model.named_parameters(remove_duplicate=False) if each is embedding}


def transposed_weights(model: nn.Module) -> frozenset[str]:
    """The matrices that lie as ``[in, out]``, those of transformers' ``Conv1D``."""
    from transformers.pytorch_utils import Conv1D

    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))


def join_pairs(shape: tuple[int, ...], parts: Iterable[tuple[tuple[Any, ...], LoraPair]]) -> LoraPair:
    """One pair of all ``parts`` of a weight of this shape: where each lies in it, and its pair.

    The rank holds one part beside the other; parts with the same A, such as a gate and an up projection that were
    trained as one, share its rows.
    """
    parts = list(parts)
    stacks = shape[0] if len(shape) == 3 else 1
    spans: list[list[tuple[int, Tensor]]] = [[] for _ in range(stacks)]
    placed = []
    for index, pair in parts:
        stack = index[0] if len(shape) == 3 else 0
        taken = spans[stack]
        first = next((start for start, a in taken if torch.equal(a, pair.a)), None)
        if first is None:
            first = sum(len(a) for _, a in taken)
            taken.append((first, pair.a))
        placed.append((stack, index[-1], first))
    scale, like = parts[0][1].scale, parts[0][1].a
    rank = max(sum(len(a) for _, a in of_stack) for of_stack in spans)
    a, b = like.new_zeros(stacks, rank, shape[-1]), like.new_zeros(stacks, shape[-2], rank)
    for (stack, rows, first), (_, pair) in zip(placed, parts, strict=True):
        columns = slice(first, first + pair.rank)
        a[stack, columns] = pair.a
        b[stack, rows, columns] = (pair.b * (pair.scale / scale)).to(b.dtype)
    return LoraPair(a, b, scale) if len(shape) == 3 else LoraPair(a[0], b[0], scale)


def read_config(folder: Path) -> Mapping[str, Any]:
    """The contents of ``adapter_config.json``, of an adapter that is LoRA and nothing more.

    Raises:
        CheckpointError: there is none, or it is something else.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter, for there is no {CONFIG}")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of the type {kind!r:.40}, and only LORA can be folded in")
    for name, why in _REFUSED.items():
        if config.get(name):
            raise CheckpointError(f"the adapter in {folder} has {name}, and {why}")
    begun = config.get("init_lora_weights")
    if begun not in _DRAWN:
        raise CheckpointError(
            f"the adapter in {folder} has init_lora_weights {begun!r:.40}, whose pairs were taken out of the weights "
            "beside them: save it by peft's path_initial_model_for_weight_conversion first"
        )
    if not isinstance(config.get("lora_alpha"), int | float) or not isinstance(config.get("r"), int):
        raise CheckpointError(f"{folder / CONFIG} must have the numbers r and lora_alpha")
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {WEIGHTS}; other files of weights are not read")
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _sorted(
    tensors: Mapping[str, Tensor], folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A and B of each layer, and the rest: all in floating point, finite, and named as peft names them."""
    found: dict[str, dict[str, Tensor]] = {}
    others, has_others = {}, bool(config.get("modules_to_save"))
    ends = (f"{BASE}.weight", *([".bias"] if config.get("bias", "none") != "none" else []))
    whole = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    again = {f"{layer}.{part}.weight" for layer in whole for part in _WRAPPED}
    for name, tensor in tensors.items():
        if name in again:
            continue
        end = next((end for end in (A, B) if name.endswith(end)), None)
        known = tensor.dim() == 2 if end else has_others or name.endswith(ends)
        if not name.startswith(PREFIX) or not tensor.is_floating_point() or not known:
            raise CheckpointError(f"{name} in {folder} is no matrix of a LoRA, so the adapter cannot be folded in")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} in {folder} is not finite")
        own = name.removeprefix(PREFIX)
        if end is None:
            others[own] = tensor
        else:
            found.setdefault(own.removesuffix(end), {})[end] = tensor
    for layer, pair in found.items():
        if len(pair) != 2:
            raise CheckpointError(f"the adapter in {folder} lacks {layer}{A if B in pair else B}")
    if not found:
        raise CheckpointError(f"the adapter in {folder} is empty")
    return {layer: (pair[A], pair[B]) for layer, pair in found.items()}, others

"""`Network`, the base of every model: plain modules that read the official layout; nothing of transformers' classes.

Layers may store several official tensors as one. In ``checkpoints``, ``places.py`` knows which part is which,
``shards.py`` reads files, and ``source.py`` finds folders and configs. ``pretrained.py`` makes of a network the class
that transformers knows.
"""

import copy
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils.generic import ModelOutput

from modelwright.checkpoints.dialect import refuse_names_of_others
from modelwright.checkpoints.finite import check_range
from modelwright.checkpoints.other_shapes import other_shapes
from modelwright.checkpoints.places import Parameters, Place, check_shape, common_types, join, places_of
from modelwright.checkpoints.quantized_model import (
    OFFSET,
    SCALE,
    is_quantized,
    quantize_tensors,
    settle_offsets,
)
from modelwright.checkpoints.rounded_layers import quantize_layers
from modelwright.checkpoints.shards import (
    INTEGERS,
    Progress,
    TensorHeader,
    dtype_of,
    read_tensors,
    stored_type,
)
from modelwright.checkpoints.source import (
    asked_dtype,
    choose_dtype,
    read_json,
    refuse_foreign_quantization,
    settle_foreign_quantization,
)
from modelwright.checkpoints.ties import same_rows, settle_ties, without_tied
from modelwright.checkpoints.weights import weights_in
from modelwright.configs import CheckedConfig
from modelwright.configs.engine import weight_quantization
from modelwright.errors import CheckpointError, ConfigError
from modelwright.hf.derived import inherited_names, is_derived

logger = logging.getLogger(__name__)
Output = TypeVar("Output", bound=ModelOutput)

STEERING = "e_score_correction_bias"
"""What the bias of a ``noaux_tc`` router is called on disk."""


class Network(nn.Module):
    """What all families' models share: their config, where official tensors go, and checked loading.

    A network is what computes: the engine runs it as it is. It imports nothing that takes long, so that a command that
    answers one question starts soon.
    """

    config_class: ClassVar[type]
    base_model_prefix: ClassVar[str]
    draws_tokens: ClassVar[bool] = False
    """Whether the model gives scores of the next token."""

    _tied_weights_keys: ClassVar[Mapping[str, str] | None] = None
    """Parameters that a config may tie, each with the one that it then is."""

    unused_tensors: ClassVar[tuple[str, ...]] = (r"(^|\.)rotary_emb\.inv_freq$",)
    """Patterns of official tensors that a checkpoint may hold and this class never reads."""

    own_matrices: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Layers of this family alone that compute a product with their weight, which may be stored in integers."""

    new_heads: ClassVar[tuple[str, ...]] = ()
    """Parameters that may be missing from a checkpoint and then start from scratch: heads to be fine-tuned."""

    def __init__(self, config: Any):
        if not isinstance(config, CheckedConfig):
            kind = self.config_class
            raise ConfigError(
                f"{type(self).__name__} is built of a {kind.__module__}.{kind.__name__}, got {type(config).__module__}."
                f"{type(config).__name__}: give that to from_config, or {kind.__name__}.from_dict(config.to_dict())"
            )
        config.check()
        weight_quantization(config)  # raises
        self.begin(config)

    def begin(self, config: Any) -> None:
        """Start the module, before there are any parts in it."""
        nn.Module.__init__(self)
        self.config = config
        self._ends = getattr(config.get_text_config(), "eos_token_id", None)

    def post_init(self) -> None:
        """Store matrices in integers where the config asks for them; called when all parts are there."""
        settings = weight_quantization(self.config)
        if settings is not None:
            quantize_layers(self, settings)

    @classmethod
    def read(
        cls, folder: Path, config: Any, dtype: str | torch.dtype = "auto", progress: Progress | None = None
    ) -> Self:
        """The model in a folder, in evaluation mode, on the CPU, with the weights that ``from_pretrained`` reads.

        Args:
            folder: in the official layout.
            config: the one in it, perhaps with overrides; copied.
            dtype: a floating type or its name; ``auto`` is the config's, else that of the stored weights.
            progress: called after each tensor with its name, the bytes read so far and the bytes to read.

        Raises:
            CheckpointError: a tensor is missing, unexpected, misshapen, of a wrong type or not finite, or the files are
                unsafe.
            ConfigError: an unusable dtype.
        """
        config, asked = copy.deepcopy(config), {"dtype": dtype}
        config.dtype = asked_dtype(asked) or config.dtype
        found = weights_in(folder)
        settle_foreign_quantization(config, found)
        settle_offsets(config, found.values())
        cls.settle_ties(config, found)
        with torch.device("meta"), _NoFirstWeights():
            model = cls(config)
        source = model.source_of(found)
        used = source.match(found)
        state = model.tensors_of(used, choose_dtype(asked, config, used.values()), progress, source)
        model.fill(state)
        ends = folder / "generation_config.json"
        if ends.is_file():
            model._ends = read_json(ends).get("eos_token_id")
        return model.eval()

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Take in-memory tensors, by name, for what is on the meta device; ties and counters come by themselves."""
        nn.Module.load_state_dict(self, state, strict=False, assign=True)
        for tied, own in self._ties().items():
            module, _, name = tied.rpartition(".")
            setattr(self.get_submodule(module), name, self.get_parameter(own))
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:  # one that no file holds
                    setattr(module, name, torch.zeros_like(buffer, device="cpu"))

    @property
    def base_model(self) -> nn.Module:
        """The part below the head; the model itself where it has no such part."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first weight that is a floating one."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the first weight is."""
        return next(self.parameters()).device

    def ends_of_sentence(self) -> int | list[int] | None:
        """The tokens that end a text: those of the checkpoint's generation config, else the config's."""
        return self._ends

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As torch's, accepting official names as well as those in memory.

        Parts of a stack that are not given keep their values, or are missing if ``strict``.
        """
        places = self.places()
        parts = {name: tensor for name, tensor in state_dict.items() if name in places and places[name].index}
        if not parts:
            return super().load_state_dict(state_dict, strict, assign)
        for name, tensor in parts.items():
            check_shape(name, tuple(tensor.shape), places[name].shape, "the state dict")
        touched = {places[name].parameter for name in parts}
        rest = [name for name, place in places.items() if place.parameter in touched and name not in parts]
        if rest and strict:
            raise CheckpointError(_misfit(type(self).__name__, sorted(rest), [], "state dict"))
        own = self.state_dict()
        joined = Parameters(places, own)
        if assign:
            parts |= {name: own[places[name].parameter][places[name].index] for name in rest}
            types = common_types(places, parts)
        else:  # each part goes straight to its place
            joined.state.update({parameter: own[parameter] for parameter in touched})
            types = {name: own[places[name].parameter].dtype for name in parts}
        for name, tensor in parts.items():
            joined.put(name, tensor, types[name])
        others = {name: tensor for name, tensor in state_dict.items() if name not in parts}
        return super().load_state_dict(others | joined.state, strict, assign)

    @classmethod
    def settle_ties(cls, config: Any, found: Mapping[str, TensorHeader]) -> str | None:
        """Turn ``tie_word_embeddings`` off in ``config`` where the checkpoint stores a head that differs.

        As in transformers, the tensors decide. Call it before a model is built of the config, whose headers then match.

        Returns:
            The official name of that head; None where the flag holds.
        """
        pairs = cls._tied_weights_keys or {}
        prefix = f"{cls.base_model_prefix}."
        short = {name: name.removeprefix(prefix) for pair in pairs.items() for name in pair}
        named = {name: found.get(name, found.get(short[name])) for name in short}
        apart = settle_ties(config, pairs, {name: header for name, header in named.items() if header is not None})
        if apart is None:
            return None
        logger.warning(
            "the checkpoint holds %s and %s, which differ: they are not tied, though tie_word_embeddings is True",
            *apart,
        )
        return apart[0]

    def named_checkpoint(self) -> Path | None:
        """The folder that the config says to start from; None where it says none."""
        return None

    def places(self) -> dict[str, Place]:
        """Every official tensor of this model by its name on disk."""
        return places_of(self)

    def may_leave_out(self) -> tuple[str, ...]:
        """Patterns of official tensors that this model, as configured, does not read: ``unused_tensors`` and more."""
        return self.unused_tensors

    def tied_names(self) -> set[str]:
        """Official names that a file need not hold because they are another tensor's."""
        return set(self._ties())

    def tied_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is tied to tensors of ``state`` and is not in it, by the names that parameters have in memory."""
        places = self.places()
        pairs = [(places[tied].parameter, places[own].parameter) for tied, own in self._ties().items()]
        return {tied: state[own] for tied, own in pairs if tied not in state and own in state}

    def tied_in(self, state: Mapping[str, Tensor]) -> set[str]:
        """Those of the tied names that ``state`` holds no other numbers for than for the tensor they are."""
        pairs = self._ties().items()
        return {
            tied for tied, own in pairs if tied not in state or (own in state and same_rows(state[tied], state[own]))
        }

    def _ties(self) -> Mapping[str, str]:
        """What the config ties: each official name with the one of the tensor that it is."""
        return self._tied_weights_keys or {} if self.config.get_text_config().tie_word_embeddings else {}

    def match(self, found: dict[str, TensorHeader], ignore_mismatched: bool = False) -> dict[str, TensorHeader]:
        """The headers that this model will read, by its own names; raises on a misfit, the tensors named.

        Of what is tied one is read (see :meth:`settle_ties`), whichever the checkpoint holds. With
        ``ignore_mismatched`` parameters of another shape, stacks of another number of experts too, are left aside,
        whole. A class that a caller derived of a family's may have parameters that the checkpoint lacks, and lack
        tensors that it holds beside the decoder's.
        """
        refuse_foreign_quantization(self.config, found)
        for folder in {header.shard.parent for header in found.values()}:
            refuse_names_of_others(folder, found)
        places = self.places()
        found = without_tied(_fit_prefix(found, places, self.base_model_prefix), self._ties())
        patterns = self.may_leave_out()
        others = other_shapes(found, places, self.state_dict()) if ignore_mismatched else []
        afresh = {other.parameter for other in others}
        left = {name for other in others for name in other.tensors}
        strange = sorted(n for n in found if n not in places and n not in left)
        unused = [name for name in strange if any(re.search(pattern, name) for pattern in patterns)]
        unexpected = [name for name in strange if name not in unused]
        missing = sorted(n for n in places if n not in found and n not in {*self.tied_names(), *self.new_heads})
        missing = [name for name in missing if places[name].parameter not in afresh]
        if (missing or unexpected) and is_derived(type(self)):
            required = inherited_names(self, places)
            beside = [name for name in unexpected if not name.startswith(f"{self.base_model_prefix}.")]
            missing = [name for name in missing if name in required]  # transformers reports those that start afresh
            unexpected = [name for name in unexpected if name not in beside]
            unused = sorted({*unused, *beside})
        if missing or unexpected:
            raise CheckpointError(_misfit(type(self).__name__, missing, unexpected, "checkpoint"))
        if unused:
            logger.warning("the checkpoint's tensors %s are not used by %s", _listed(unused), type(self).__name__)
        used, stored = {}, self.state_dict()
        if afresh:
            logger.warning("%s have another shape in the checkpoint and start afresh", _listed(sorted(afresh)))
        for name, header in found.items():
            if name not in places or places[name].parameter in afresh:
                continue
            _check_header(name, header, places[name].shape, stored[places[name].parameter].dtype)
            used[name] = header
        return used

    def left_aside(
        self, found: Mapping[str, TensorHeader], used: Mapping[str, TensorHeader], missing: set[str]
    ) -> dict[str, set[Any]]:
        """transformers' lists of a load that read ``used`` of ``found``, and after which ``missing`` started afresh."""
        places = self.places()
        fitting = _fit_prefix(dict(found), places, self.base_model_prefix)
        others = other_shapes(fitting, places, self.state_dict())
        afresh = {other.parameter for other in others}
        known = self.tied_names() | {name for name, place in places.items() if place.parameter in afresh}
        read = {header.name for header in used.values()}
        read |= {fitting[name].name for other in others for name in other.tensors}
        unread = {name for name, header in found.items() if header.name not in read and name not in known}
        mismatched = {(other.name, other.there, other.here) for other in others}
        return {"missing_keys": missing - afresh, "mismatched_keys": mismatched, "unexpected_keys": unread}

    def source_of(self, found: dict[str, TensorHeader]) -> "Network":
        """The model whose checkpoint these headers are of: this one, or what it was before its weights were rounded."""
        settings = weight_quantization(self.config)
        if settings is None or any(is_quantized(header) for header in found.values()):
            return self
        config = copy.deepcopy(self.config)
        config.quant_config = None
        with torch.device("meta"), _NoFirstWeights():
            return type(self)(config)

    def tensors_of(
        self,
        headers: dict[str, TensorHeader],
        dtype: torch.dtype,
        progress: Progress | None,
        source: "Network",
    ) -> dict[str, Tensor]:
        """In-memory tensors by name, read straight into place where types agree; rounded if ``source`` holds floats."""
        places, types, settings = self.places(), source.stored_types(dtype), weight_quantization(self.config)
        if source is not self and settings is not None:
            tensors = ((name, _as_type(name, tensor, types[name])) for name, tensor in read_tensors(headers, progress))
            return join(places, self.state_dict(), quantize_tensors(tensors, source, places, settings))
        parameters = Parameters(places, self.state_dict())

        def room(name: str) -> Tensor | None:
            return parameters.room(name, types[name]) if stored_type(headers[name]) == types[name] else None

        for name, tensor in read_tensors(headers, progress, room):
            if tensor.is_floating_point():
                check_range(name, tensor, types[name])
            parameters.put(name, tensor, types[name])
        return parameters.state

    def stored_types(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """The type that each official tensor is kept in where the model is loaded as ``dtype``."""
        own = self.state_dict()

        def kind(name: str, place: Place) -> torch.dtype:
            built = own[place.parameter].dtype
            if name.endswith((SCALE, OFFSET)) or not built.is_floating_point:
                return built
            return torch.float32 if name.endswith(STEERING) else dtype

        return {name: kind(name, place) for name, place in self.places().items()}

    def weight_dtype(self) -> torch.dtype:
        """The type that a saved config names for the weights."""
        return self.dtype

    def cache_dtype(self) -> torch.dtype:
        """The type of the keys and values that the layers make."""
        return self.dtype

    def returned(self, output: Output, return_dict: bool | None) -> Output | tuple:
        """What a forward pass returns: its output, or a tuple where the caller, or else the config, asks for one."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def initialise(self, module: nn.Module) -> None:
        """Draw the first weights of a ``module`` that this family alone has.

        By functions of ``torch.nn.init`` looked up at each call: while weights are loaded, transformers lets those pass
        over what was read.
        """


def _as_type(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    check_range(name, tensor, dtype)
    return tensor.to(dtype)


class _NoFirstWeights(TorchFunctionMode):
    """Lets constructors draw no first weights: there is nothing to fill on the meta device.

    Drawing there would run torch's Python decompositions, whose import takes longer than loading a small model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _DRAWING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


_DRAWING = (torch.Tensor.normal_, torch.Tensor.uniform_)


def _fit_prefix(found: dict[str, TensorHeader], places: dict[str, Place], prefix: str) -> dict[str, TensorHeader]:
    """Names of a bare decoder and of one under ``prefix.`` are brought together, whichever way they differ."""
    dotted = f"{prefix}."
    if any(dotted + name in places for name in found):
        return {dotted + name if dotted + name in places else name: header for name, header in found.items()}
    if any(name.startswith(dotted) and name.removeprefix(dotted) in places for name in found):
        return {name.removeprefix(dotted): header for name, header in found.items()}
    return found


def _check_header(name: str, header: TensorHeader, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A tensor of a quantized weight has the very type it is read as; any other may have any floating type."""
    check_shape(name, header.shape, shape, header.shard.name)
    where = f"{name} is stored as {header.dtype} in {header.shard.name}"
    if name.endswith((SCALE, OFFSET)) or dtype in INTEGERS.values():
        if stored_type(header) != dtype:
            raise CheckpointError(f"{where}, and the config's quantization asks for {dtype}")
    elif dtype_of(header) is None:
        raise CheckpointError(f"{where}; weights must be F64, F32, F16 or BF16")


def _misfit(model: str, missing: list[str], unexpected: list[str], what: str) -> str:
    parts = [f"{word} {_listed(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    return f"the {what} does not fit {model}: " + "; ".join(parts)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more

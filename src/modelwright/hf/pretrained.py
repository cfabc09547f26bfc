"""The base of every model: transformers' ``PreTrainedModel`` reading and writing the official layout, shard by shard.

Layers may store several official tensors as one. In ``checkpoints``, ``places.py`` knows which part is which,
``shards.py`` reads and writes files, and ``source.py`` finds folders and configs.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging as transformers_logging
from transformers.utils.generic import ModelOutput

from modelwright.checkpoints.places import Parameters, Place, check_shape, join, places_of, split
from modelwright.checkpoints.quantized_model import OFFSET, SCALE, is_quantized, quantize_layers, quantize_tensors
from modelwright.checkpoints.shards import (
    INTEGERS,
    Progress,
    TensorHeader,
    dtype_of,
    parse_size,
    read_headers,
    read_tensors,
    stored_type,
    write_shards,
)
from modelwright.checkpoints.source import asked_dtype, choose_dtype, find_folder, read_config, read_json
from modelwright.configs.base import is_transformers_quantization
from modelwright.configs.engine import weight_quantization
from modelwright.errors import CheckpointError
from modelwright.families import find_family
from modelwright.hf.registry import register_with_auto
from modelwright.layers import Experts, Router
from modelwright.layers.balance import steered_routers

logger = logging.getLogger(__name__)
Output = TypeVar("Output", bound=ModelOutput)

STEERING = "e_score_correction_bias"
"""What the bias of a ``noaux_tc`` router is called on disk."""


class ModelwrightPreTrainedModel(PreTrainedModel):
    """What all families share: checked loading and saving, initialisation, and the ways to attend."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _is_stateful = True  # assisted decoding off: it would crop a cache between calls

    unused_tensors: ClassVar[tuple[str, ...]] = (r"(^|\.)rotary_emb\.inv_freq$",)
    """Patterns of official tensors that a checkpoint may hold and this class never reads."""

    own_matrices: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Layers of this family alone that compute a product with their weight, which may be stored in integers."""

    new_heads: ClassVar[tuple[str, ...]] = ()
    """Parameters that may be missing from a checkpoint and then start from scratch: heads to be fine-tuned."""

    def __init__(self, config, *args, **kwargs):
        config.check()
        weight_quantization(config)  # raises
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        """As transformers', and matrices stored in integers where the config asks for them.

        What steers a router stays fp32: transformers is told so by the models that have it.
        """
        if steered_routers(self):
            self._keep_in_fp32_modules_strict = {STEERING}
        super().post_init()
        settings = weight_quantization(self.config)
        if settings is not None:
            quantize_layers(self, settings)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Self:
        """Build a model from its config alone: with new weights, or those of the folder that the config names.

        The constructor draws new weights and reads no file. Keyword arguments are those of transformers'
        ``AutoModel.from_config``, which takes this road too: ``dtype`` and ``attn_implementation``.

        Raises:
            CheckpointError: the config names a folder that is not there, or whose tensors do not fit.
        """
        return cls._from_config(config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Self:
        model = super()._from_config(config, **kwargs)
        model.read_named_checkpoint()
        return model

    def named_checkpoint(self) -> Path | None:
        """The folder that the config says to start from; None where it says none."""
        return None

    def read_named_checkpoint(self) -> None:
        """Read the weights in :meth:`named_checkpoint`, if any; a model on the meta device has nothing to fill."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        folder = self.named_checkpoint()
        if folder is None:
            return
        found = read_headers(folder)
        source = self.source_of(found)
        self.load_state_dict(self._read(source.match(found), self.weight_dtype(), None, source), strict=False)
        self.tie_weights()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args,
        config: Any = None,
        progress: Progress | None = None,
        **kwargs,
    ) -> Any:
        """Load the official layout from a folder (or a hub id), shard by shard, and check that nothing is left over.

        Keyword arguments are those of transformers: ``dtype``, ``device_map``, ``attn_implementation``,
        ``quantization_config``, ``output_loading_info``, and fields of the config to override. With
        ``ignore_mismatched_sizes`` a new head (of another number of labels) may differ in shape and starts afresh.
        A config (or a ``quantization_config`` of ours, as a dict) that asks for quantized weights rounds those of a
        checkpoint of floats as they are read, and expects those of any other as they are then stored.

        Args:
            progress: called after each tensor with its name, the bytes read so far and the bytes to read.

        Returns:
            The model, in eval mode; with ``output_loading_info`` also the lists of missing and unused tensors.

        Raises:
            CheckpointError: a tensor is missing, unexpected, misshapen or of a wrong type, or the files are unsafe.
            ConfigError: the configuration breaks a rule.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, config=config, **kwargs)
        if kwargs.get("state_dict") is not None:
            raise CheckpointError("give a folder or a state_dict, and not both")
        kwargs.pop("trust_remote_code", None)  # nothing is ever imported because of a checkpoint
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_from_auto", "_commit_hash")}
        folder = find_folder(pretrained_model_name_or_path, kwargs)
        quantization = _take_quantization(kwargs)
        config, kwargs = read_config(cls.config_class, folder, config, kwargs)
        if quantization is not None:
            config.quant_config = quantization
        config.dtype = asked_dtype(kwargs) or config.dtype
        with torch.device("meta"):
            skeleton = cls(copy.deepcopy(config))
        found = read_headers(folder)
        source = skeleton.source_of(found)
        used = source.match(found, bool(kwargs.pop("ignore_mismatched_sizes", False)))
        dtype = choose_dtype(kwargs, config, used.values())
        state = skeleton._read(used, dtype, progress, source)
        if "generation_config" not in kwargs and cls.can_generate():
            kwargs |= _generation_config(folder)
        with no_progress_bar():
            loaded = super().from_pretrained(None, *args, config=config, state_dict=state, dtype=dtype, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        if (family := find_family(model)) is not None:
            register_with_auto(family)  # so that transformers' Auto classes read what this model saves
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if not info:
            return model
        return model, info[0] | {"unexpected_keys": set(found) - {header.name for header in used.values()}}

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        **kwargs,
    ) -> None:
        """Write config, generation config and weights in the official layout: stacks apart, tied heads once.

        Args:
            state_dict: what to write instead of the model's own weights, under official names or those in memory.
            max_shard_size: bytes of one file at most, or text such as ``200MB`` or ``5GiB``.
        """
        if not is_main_process:
            return
        if self._hf_peft_config_loaded:  # transformers' adapters are saved alone, as transformers does
            weights = None if state_dict is None else dict(state_dict)
            return super().save_pretrained(save_directory, state_dict=weights, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = str(self.weight_dtype()).removeprefix("torch.")
        config.save_pretrained(folder)
        if self.can_generate() and self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        state = self.state_dict() if state_dict is None else state_dict
        places = {name: place for name, place in self.places().items() if name not in self.tied_names()}
        write_shards(folder, split(places, state), parse_size(max_shard_size))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

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
        parts |= {name: own[places[name].parameter][places[name].index] for name in rest}
        joined = join(places, own, parts.items())
        others = {name: tensor for name, tensor in state_dict.items() if name not in parts}
        return super().load_state_dict(others | joined, strict, assign)

    def places(self) -> dict[str, Place]:
        """Every official tensor of this model by its name on disk."""
        return places_of(self)

    def may_leave_out(self) -> tuple[str, ...]:
        """Patterns of official tensors that this model, as configured, does not read: ``unused_tensors`` and more."""
        return self.unused_tensors

    def tied_names(self) -> set[str]:
        """Official names that a file need not hold because they are another tensor's."""
        return set(self._tied_weights_keys or {}) if self.config.get_text_config().tie_word_embeddings else set()

    def match(self, found: dict[str, TensorHeader], ignore_mismatched_heads: bool = False) -> dict[str, TensorHeader]:
        """The headers that this model will read, by its own names; raises on a misfit, the tensors named."""
        places = self.places()
        found = _fit_prefix(found, places, self.base_model_prefix)
        patterns = self.may_leave_out()
        unused = sorted(n for n in found if n not in places and any(re.search(p, n) for p in patterns))
        unexpected = sorted(n for n in found if n not in places and n not in unused)
        missing = sorted(n for n in places if n not in found and n not in {*self.tied_names(), *self.new_heads})
        if missing or unexpected:
            raise CheckpointError(_misfit(type(self).__name__, missing, unexpected, "checkpoint"))
        if unused:
            logger.warning("the checkpoint's tensors %s are not used by %s", _listed(unused), type(self).__name__)
        used, stored = {}, self.state_dict()
        for name, header in found.items():
            other_shape = name in places and header.shape != places[name].shape
            if name not in places or (ignore_mismatched_heads and other_shape and name in self.new_heads):
                continue
            _check_header(name, header, places[name].shape, stored[places[name].parameter].dtype)
            used[name] = header
        return used

    def source_of(self, found: dict[str, TensorHeader]) -> "ModelwrightPreTrainedModel":
        """The model whose checkpoint these headers are of: this one, or what it was before its weights were rounded."""
        settings = weight_quantization(self.config)
        if settings is None or any(is_quantized(header) for header in found.values()):
            return self
        config = copy.deepcopy(self.config)
        config.quant_config = None
        with torch.device("meta"):
            return type(self)(config)

    def _read(
        self,
        headers: dict[str, TensorHeader],
        dtype: torch.dtype,
        progress: Progress | None,
        source: "ModelwrightPreTrainedModel",
    ) -> dict[str, Tensor]:
        """In-memory tensors by name, read straight into place where types agree; rounded if ``source`` holds floats."""
        places, types, settings = self.places(), source.stored_types(dtype), weight_quantization(self.config)
        if source is not self and settings is not None:
            tensors = ((name, tensor.to(types[name])) for name, tensor in read_tensors(headers, progress))
            return join(places, self.state_dict(), quantize_tensors(tensors, source, places, settings))
        parameters = Parameters(places, self.state_dict())

        def room(name: str) -> Tensor | None:
            return parameters.room(name, types[name]) if stored_type(headers[name]) == types[name] else None

        for name, tensor in read_tensors(headers, progress, room):
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of ``initializer_range``; norms one; biases and counters zero; the rest as the family says."""
        super()._init_weights(module)
        std = self.config.get_text_config().initializer_range
        if isinstance(module, Experts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        elif isinstance(module, Router):
            init.normal_(module.weight, std=std)
            if module.method == "noaux_tc":
                init.zeros_(module.e_score_correction_bias)
                init.zeros_(module.load)
        self.initialise(module)


def _generation_config(folder: Path) -> dict[str, GenerationConfig]:
    """``{"generation_config": ...}`` where the folder holds one."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    read_json(path)  # a plain sentence when it is damaged
    return {"generation_config": GenerationConfig.from_pretrained(folder)}


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers' bar off while it takes over tensors that are read already."""
    earlier = transformers_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **kwargs | {"disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(earlier)


def _fit_prefix(found: dict[str, TensorHeader], places: dict[str, Place], prefix: str) -> dict[str, TensorHeader]:
    """Names of a bare decoder and of one under ``prefix.`` are brought together, whichever way they differ."""
    dotted = f"{prefix}."
    if any(dotted + name in places for name in found):
        return {dotted + name if dotted + name in places else name: header for name, header in found.items()}
    if any(name.startswith(dotted) and name.removeprefix(dotted) in places for name in found):
        return {name.removeprefix(dotted): header for name, header in found.items()}
    return found


def _take_quantization(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """A ``quantization_config`` of ours, out of ``kwargs``; transformers' own stays there."""
    given = kwargs.get("quantization_config")
    if is_transformers_quantization(given):
        return None
    return kwargs.pop("quantization_config", None)


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

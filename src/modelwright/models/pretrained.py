"""The base of every model: transformers' ``PreTrainedModel`` reading and writing the official layout, tensor by tensor.

Layers may store several official tensors as one (stacked experts, fused projections); their ``slots()`` say which part is
which, and here that table is used in both directions. Files are the business of ``shards.py``.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init

from modelwright.errors import CheckpointError, ConfigError
from modelwright.layers import Experts, Router, Slot
from modelwright.models.shards import TensorHeader, dtype_of, read_headers, read_tensors, write_shards

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Place:
    """Where an official tensor lies in memory: a part (``index``) of a parameter or buffer, and the shape of that part."""

    parameter: str
    index: tuple[int | slice, ...]
    shape: tuple[int, ...]


class ModelwrightPreTrainedModel(PreTrainedModel):
    """What all families share: checked loading and saving, initialisation, and the ways to attend."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _is_stateful = True  # assisted decoding off: it would crop a cache between calls
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {"e_score_correction_bias"}

    ignored_on_load: ClassVar[tuple[str, ...]] = (r"(^|\.)rotary_emb\.inv_freq$",)
    """Patterns of official tensors that this class never uses."""

    new_heads: ClassVar[tuple[str, ...]] = ("score.weight",)
    """Parameters that may be missing from a checkpoint and then start from scratch: heads to be fine-tuned."""

    def __init__(self, config, *args, **kwargs):
        config.check()
        _check_expert_ranks(config)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args, config: Any = None, **kwargs
    ) -> Self:
        """Load the official layout from a folder (or a hub id), shard by shard, and check that nothing is left over.

        Keyword arguments are those of transformers: ``dtype``, ``device_map``, ``attn_implementation``,
        ``quantization_config``, and fields of the config to override.

        Raises:
            CheckpointError: a tensor is missing, unexpected, misshapen or of a wrong type, or the files are unsafe.
            ConfigError: the configuration breaks a rule.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, config=config, **kwargs)
        kwargs.pop("trust_remote_code", None)  # nothing is ever imported because of a checkpoint
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_from_auto", "_commit_hash")}
        folder = _resolve(pretrained_model_name_or_path, kwargs)
        config, kwargs = _build_config(cls.config_class, folder, config, kwargs)
        with torch.device("meta"):
            skeleton = cls(copy.deepcopy(config))
        headers = cls._match(skeleton, read_headers(folder))
        dtype = _wanted_dtype(kwargs, config, headers)
        state = _assemble(skeleton, headers, dtype)
        if (
            "generation_config" not in kwargs
            and (folder / "generation_config.json").is_file()
            and skeleton.can_generate()
        ):
            kwargs["generation_config"] = GenerationConfig.from_pretrained(folder)
        return super().from_pretrained(None, *args, config=config, state_dict=state, dtype=dtype, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        **kwargs,
    ) -> None:
        """Write config, generation config and weights in the official layout: experts and projections apart, tied heads once."""
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.save_pretrained(folder)
        if self.can_generate():
            self.generation_config.save_pretrained(folder)
        state = self.state_dict() if state_dict is None else state_dict
        write_shards(folder, self._official(state), _bytes(max_shard_size))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """As torch's, accepting official names as well as those in memory."""
        places = self.places()
        stored = {name: tensor for name, tensor in state_dict.items() if name not in places}
        for name, tensor in state_dict.items():
            if name not in places:
                continue
            place = places[name]
            if not place.index:
                stored[name] = tensor
                continue
            whole = stored.setdefault(place.parameter, self.get_parameter(place.parameter).detach().clone())
            whole[place.index] = tensor.to(whole)
        return super().load_state_dict(stored, strict, assign)

    def places(self) -> dict[str, Place]:
        """Every official tensor of this model by its name on disk."""
        table: dict[str, Place] = {}
        held: set[str] = set()
        for prefix, module in self.named_modules():
            slots: dict[str, Slot] = module.slots() if hasattr(module, "slots") else {}
            for name, slot in slots.items():
                parameter = f"{prefix}.{slot.parameter}"
                part = module.get_parameter(slot.parameter)[slot.index]
                table[f"{prefix}.{name}"] = Place(parameter, slot.index, tuple(part.shape))
                held.add(parameter)
        for name, tensor in self.state_dict().items():
            if name not in held:
                table[name] = Place(name, (), tuple(tensor.shape))
        return table

    @classmethod
    def _match(cls, skeleton: Self, found: dict[str, TensorHeader]) -> dict[str, TensorHeader]:
        """The headers that this model will read, under its own names; raises on the first misfit, tensors named."""
        places = skeleton.places()
        found = _fit_prefix(found, places, cls.base_model_prefix)
        dropped = sorted(n for n in found if n not in places and cls._may_ignore(n, skeleton))
        if dropped:
            logger.info("%d tensors of the checkpoint are not used: %s", len(dropped), ", ".join(dropped[:5]))
        unexpected = sorted(n for n in found if n not in places and n not in dropped)
        tied = (
            set(skeleton._tied_weights_keys or {}) if skeleton.config.get_text_config().tie_word_embeddings else set()
        )
        tied |= {name for name in places if any(name.endswith(f".{end}") for end in tied)}
        fresh = sorted(n for n in places if n not in found and n in cls.new_heads)
        missing = sorted(n for n in places if n not in found and n not in tied and n not in fresh)
        if missing or unexpected:
            raise CheckpointError(_misfit(cls.__name__, missing, unexpected))
        if fresh:
            logger.warning("newly initialised, to be trained: %s", ", ".join(fresh))
        wanted = {name: header for name, header in found.items() if name in places}
        for name, header in wanted.items():
            _check_tensor(name, header, places[name].shape)
        return wanted

    @classmethod
    def _may_ignore(cls, name: str, skeleton: Self) -> bool:
        return any(re.search(pattern, name) for pattern in skeleton.unused_tensors())

    def unused_tensors(self) -> tuple[str, ...]:
        """Patterns of official tensors that this model, as configured, leaves aside when it loads."""
        heads = () if self.can_generate() else (r"^lm_head\.weight$",)
        return (*self.ignored_on_load, *heads)

    def _official(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """In-memory tensors under their official names, tied heads left out; parts are views."""
        tied = self._tied_weights_keys or {}
        leave_out = set(tied) if self.config.get_text_config().tie_word_embeddings else set()
        for name, place in self.places().items():
            if name not in leave_out and place.parameter in state:
                tensor = state[place.parameter]
                yield name, tensor[place.index] if place.index else tensor

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of ``initializer_range``; norms one; biases and counters zero."""
        std = self.config.get_text_config().initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Experts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        elif isinstance(module, Router):
            init.normal_(module.weight, std=std)
            if module.method == "noaux_tc":
                init.zeros_(module.e_score_correction_bias)
                init.zeros_(module.load)
        elif isinstance(module, nn.LayerNorm) or type(module).__name__ == "RMSNorm":
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


def _resolve(name: str | Path, kwargs: dict[str, Any]) -> Path:
    """A local folder as it is; anything else is taken for a hub id and fetched (weights as safetensors only)."""
    hub = {key: kwargs.pop(key) for key in ("revision", "cache_dir", "token", "local_files_only") if key in kwargs}
    subfolder = kwargs.pop("subfolder", "")
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
            raise CheckpointError(f"{name} is not a folder and not a hub id")
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=list(HUB_FILES), **hub))
        except Exception as error:
            raise CheckpointError(
                f"{name} is not a folder here, and the hub did not answer with it: {error}"
            ) from error
    return folder / subfolder


def _build_config(config_class: Any, folder: Path, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config with overrides applied, and what is left of the keyword arguments."""
    if isinstance(config, config_class):
        return copy.deepcopy(config), kwargs
    path = folder / "config.json"
    if config is None and not path.is_file():
        raise CheckpointError(f"{folder} has no config.json")
    dtypes = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    config, rest = config_class.from_pretrained(config or folder, return_unused_kwargs=True, **kwargs)
    return config, rest | dtypes


def _fit_prefix(found: dict[str, TensorHeader], places: dict[str, Place], prefix: str) -> dict[str, TensorHeader]:
    """Names of a bare decoder and of one under ``prefix.`` are brought together, whichever way they differ."""
    dotted = f"{prefix}."
    if not prefix or not places:
        return found
    ours = any(name.startswith(dotted) for name in places)
    theirs = any(name.startswith(dotted) for name in found)
    if theirs and not ours:
        return {name.removeprefix(dotted): header for name, header in found.items()}
    if ours and not theirs:
        return {name if name in places else dotted + name: header for name, header in found.items()}
    return found


def _check_tensor(name: str, header: TensorHeader, shape: tuple[int, ...]) -> None:
    if header.shape != shape:
        raise CheckpointError(
            f"{name} has shape {list(header.shape)} in {header.shard.name}, and the config asks for {list(shape)}"
        )
    if dtype_of(header) is None:
        raise CheckpointError(
            f"{name} is stored as {header.dtype} in {header.shard.name}; weights must be F64, F32, F16 or BF16"
        )


def _misfit(model: str, missing: list[str], unexpected: list[str]) -> str:
    def listed(names: list[str]) -> str:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return ", ".join(names[:8]) + more

    parts = [f"missing {listed(missing)}"] * bool(missing) + [f"unexpected {listed(unexpected)}"] * bool(unexpected)
    return f"the checkpoint does not fit {model}: " + "; ".join(parts)


def _wanted_dtype(kwargs: dict[str, Any], config: Any, headers: dict[str, TensorHeader]) -> torch.dtype:
    """The type to load in: as asked; with ``auto`` (the default) the config's, else that of the stored weights."""
    old, new = kwargs.pop("torch_dtype", None), kwargs.pop("dtype", None)
    asked = new if new is not None else old
    if asked in (None, "auto"):
        asked = getattr(config, "dtype", None)
    if asked is None:
        asked = next((dtype_of(header) for header in headers.values()), None) or torch.float32
    if isinstance(asked, str):
        name = asked.removeprefix("torch.")
        asked = getattr(torch, name, None)
        if not isinstance(asked, torch.dtype) or not asked.is_floating_point:
            raise ConfigError(f"dtype must be a floating torch type, not {name!r}")
    return asked


def _assemble(
    skeleton: ModelwrightPreTrainedModel, headers: dict[str, TensorHeader], dtype: torch.dtype
) -> dict[str, Tensor]:
    """In-memory tensors by name, filled shard by shard; stacked ones are allocated once and filled part by part."""
    places, sizes = skeleton.places(), dict(skeleton.state_dict())
    wide = skeleton._keep_in_fp32_modules_strict
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(headers):
        place = places[name]
        kind = torch.float32 if any(name.endswith(end) for end in wide) else dtype
        if not place.index:
            state[place.parameter] = tensor.to(kind, copy=True)
            continue
        if place.parameter not in state:
            state[place.parameter] = torch.empty(sizes[place.parameter].shape, dtype=kind)
        state[place.parameter][place.index].copy_(tensor)
    return state


def _check_expert_ranks(config: Any) -> None:
    ranks = getattr(config.get_text_config(), "ep_size", 1)
    if ranks == 1:
        return
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size() if ready else 0
    if world == 0 or world % ranks:
        state = f"the process group has {world} ranks" if ready else "no process group is initialised"
        raise ConfigError(
            f"ep_size ({ranks}) needs an initialised process group whose size is a multiple of it; {state}"
        )


def _bytes(size: int | str) -> int:
    """``5GB``, ``200MiB`` or a number of bytes."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B)\s*", size.upper())
    if match is None:
        raise ConfigError(f"max_shard_size must be bytes or a number with KB, MB or GB, not {size!r}")
    return int(float(match[1]) * UNITS[match[2]])

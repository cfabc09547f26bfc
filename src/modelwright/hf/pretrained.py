"""A network as transformers' ``PreTrainedModel``, which reads and writes the official layout, shard by shard.

Layers may store several official tensors as one. In ``checkpoints``, ``places.py`` knows which part is which,
``shards.py`` reads and writes files, and ``source.py`` finds folders and configs.
"""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging as transformers_logging

from modelwright.checkpoints.conversion_source import official_tensors
from modelwright.checkpoints.in_memory import headers_in_memory, with_stacks_apart
from modelwright.checkpoints.quantized_model import drop_offsets, settle_offsets
from modelwright.checkpoints.shards import FileNames, Progress, TensorHeader, parse_size, write_planned
from modelwright.checkpoints.source import (
    asked_dtype,
    choose_dtype,
    find_folder,
    own_config,
    read_config,
    read_json,
    settle_foreign_quantization,
)
from modelwright.checkpoints.weights import weights_in
from modelwright.configs.quantization import (
    QUANT_METHODS,
    foreign_quantization,
    forget_foreign_quantization,
    is_transformers_quantization,
    method_of,
)
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import find_family
from modelwright.hf.adapters import Adapter, PartsAdapter, place_adapters, refuse_dora, without_places
from modelwright.hf.hub import file_times, push_folder
from modelwright.hf.key_mapping import renamed
from modelwright.hf.network import STEERING, Network
from modelwright.hf.planned_tensors import planned_tensors
from modelwright.hf.registry import register_with_auto
from modelwright.layers import Experts, Router
from modelwright.layers.balance import steered_routers
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.layers.lora import lora_of

logger = logging.getLogger(__name__)

TORCHAO = "torchao"
"""The one of transformers' quantizations that takes the layers as they are, once they are loaded."""


class ModelwrightPreTrainedModel(Network, PreTrainedModel):
    """What transformers' callers know of a model of any family: checked loading and saving, and first weights.

    A class of a family is its network and this one, in that order.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def begin(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)

    def post_init(self) -> None:
        """As transformers', after which matrices are stored in integers where the config asks for them.

        What steers a router stays fp32: transformers is told so by the models that have it.
        """
        if steered_routers(self):
            self._keep_in_fp32_modules_strict = {STEERING}
        PreTrainedModel.post_init(self)
        Network.post_init(self)
        self.register_load_state_dict_pre_hook(place_adapters)

    def ends_of_sentence(self) -> int | list[int] | None:
        """Those of the generation config, which a caller may have changed."""
        return self.generation_config.eos_token_id

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **how: Any) -> None:
        """As transformers', which counts layers of its own class alone where every n-th is to be recomputed."""
        super()._set_gradient_checkpointing(enable, *args, **how)
        layers = [module for module in self.modules() if isinstance(module, CheckpointedLayer)]
        for number, layer in enumerate(layers):
            layer.gradient_checkpointing = enable and number % how.get("every_n_layers", 1) == 0

    @classmethod
    def read(
        cls, folder: Path, config: Any, dtype: str | torch.dtype = "auto", progress: Progress | None = None
    ) -> Self:
        """:meth:`from_pretrained`, for a family whose model is its network."""
        return cls.from_pretrained(folder, config=config, dtype=dtype, progress=progress)

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
        model = super()._from_config(own_config(cls.config_class, config), **kwargs)
        model.read_named_checkpoint()
        return model

    def read_named_checkpoint(self) -> None:
        """Read the weights in :meth:`named_checkpoint`, if any, under official names or another dialect's.

        A model on the meta device has nothing to fill.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        folder = self.named_checkpoint()
        if folder is None:
            return
        if (official := official_tensors(folder, self.config)) is not None:
            self.load_state_dict(official, strict=False)
            self.tie_weights()
            return
        found = weights_in(folder)
        settle_foreign_quantization(self.config, found)
        if settle_offsets(self.config, found.values()):
            drop_offsets(self)
        if (apart := self.settle_ties(self.config, found)) is not None:
            module, _, name = apart.rpartition(".")
            setattr(self.get_submodule(module), name, nn.Parameter(torch.empty_like(self.get_parameter(apart))))
            self.all_tied_weights_keys.pop(apart, None)
        source = self.source_of(found)
        self.load_state_dict(self.tensors_of(source.match(found), self.weight_dtype(), None, source), strict=False)
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

        Keyword arguments are those of transformers: ``dtype``, ``device_map``, ``attn_implementation``, ``variant``,
        ``quantization_config``, ``key_mapping``, ``output_loading_info``, and fields of the config to override. With
        ``state_dict`` and a ``config``, and None for the folder, its tensors are read as a folder's would be. With
        ``ignore_mismatched_sizes`` parameters of another shape (a head for other labels, a longer vocabulary) start
        afresh. A folder in which peft saved an adapter gives the model that it is of, with the adapter.
        A config (or a ``quantization_config`` of ours, as a dict) that asks for quantized weights rounds those of a
        checkpoint of floats as they are read, and expects those of any other as they are then stored.

        Args:
            progress: called after each tensor with its name, the bytes read so far and the bytes to read.

        Returns:
            The model, in eval mode; with ``output_loading_info`` also the lists of missing and unused tensors, and of
            those of another shape.

        Raises:
            CheckpointError: a tensor is missing, unexpected, misshapen, of a wrong type or not finite, or the files are
                unsafe.
            ConfigError: the configuration breaks a rule.
        """
        state = kwargs.pop("state_dict", None)
        kwargs.pop("trust_remote_code", None)  # nothing is ever imported because of a checkpoint
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_from_auto", "_commit_hash")}
        if pretrained_model_name_or_path is None:
            if state is None:
                return super().from_pretrained(None, *args, config=config, **kwargs)
            return cls._from_state(state, *args, config=config, progress=progress, **kwargs)
        if state is not None:
            raise CheckpointError("give a folder or a state_dict, and not both")
        asked = dict(kwargs)
        folder = find_folder(pretrained_model_name_or_path, kwargs)
        adapter = Adapter.of(pretrained_model_name_or_path, folder, kwargs)
        if adapter is None:
            name = str(pretrained_model_name_or_path)
            return cls._from_folder(folder, name, *args, config=config, progress=progress, **kwargs)
        if adapter.is_apart:  # the base is found by arguments of its own
            base = cls.from_pretrained(adapter.base, *args, config=config, progress=progress, **without_places(asked))
        else:
            base = cls._from_folder(folder, str(adapter.base), *args, config=config, progress=progress, **kwargs)
        return adapter.upon(base)

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor], *args: Any, config: Any, **kwargs: Any) -> Any:
        """:meth:`from_pretrained` of tensors under official names, or those in memory."""
        if config is None:
            raise ConfigError("a state_dict has no config beside it: give one, or its folder, as config=")
        quantization = _take_quantization(kwargs)
        config, kwargs = read_config(cls.config_class, Path(), config, kwargs)
        return cls._from_tensors(headers_in_memory(state), config, quantization, *args, **kwargs)

    @classmethod
    def _from_folder(cls, folder: Path, name: str, *args: Any, config: Any, **kwargs: Any) -> Any:
        """:meth:`from_pretrained` of the weights in ``folder``, which a caller called ``name``."""
        quantization, variant = _take_quantization(kwargs), kwargs.pop("variant", None)
        config, kwargs = read_config(cls.config_class, folder, config, kwargs)
        found = weights_in(folder, variant)
        if "generation_config" not in kwargs and cls.can_generate():
            kwargs |= _generation_config(folder)
        loaded = cls._from_tensors(found, config, quantization, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = name
        return loaded

    @classmethod
    def _from_tensors(
        cls,
        found: dict[str, TensorHeader],
        config: Any,
        quantization: dict[str, Any] | None,
        *args: Any,
        progress: Progress | None,
        **kwargs: Any,
    ) -> Any:
        """:meth:`from_pretrained` of a checkpoint's tensors; ``quantization`` is one of ours."""
        found = renamed(found, kwargs.pop("key_mapping", None))
        if quantization is not None:
            config.quant_config = quantization
        config.dtype = asked_dtype(kwargs) or config.dtype
        settle_foreign_quantization(config, found)
        settle_offsets(config, found.values())
        cls.settle_ties(config, found)
        with torch.device("meta"):
            skeleton = cls(copy.deepcopy(config))
        source = skeleton.source_of(found)
        ignore = bool(kwargs.pop("ignore_mismatched_sizes", False))
        found = with_stacks_apart(found, source.places(), source.state_dict(), cls.base_model_prefix, ignore)
        used = source.match(found, ignore)
        dtype = choose_dtype(kwargs, config, used.values())
        state = skeleton.tensors_of(used, dtype, progress, source)
        if kwargs.get("device_map") is not None:  # what lies on disk is found by its own name, tied or not
            state |= skeleton.tied_tensors(state)
        with no_progress_bar():
            loaded = super().from_pretrained(None, *args, config=config, state_dict=state, dtype=dtype, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        if (family := find_family(model)) is not None:
            register_with_auto(family)  # so that transformers' Auto classes read what this model saves
        return (model, info[0] | source.left_aside(found, used, info[0]["missing_keys"])) if info else model

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs: Any) -> Any:
        """As transformers', and LoRA of each expert, or of another part of a stack, becomes LoRA of the stack.

        Raises:
            CheckpointError: an adapter of parts of a stack that is not LoRA, or more than that; or DoRA, of which this
                road reads no magnitudes.
        """
        name = adapter_name or "default"
        held = self._hf_peft_config_loaded and name in self.peft_config
        adapter = None if held else PartsAdapter.of(self, peft_model_id, kwargs)
        if adapter is None:
            refuse_dora(peft_model_id)
            return super().load_adapter(peft_model_id, adapter_name, **kwargs)
        return adapter.put_upon(self, name, bool(kwargs.get("is_trainable", False)))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """Write config, generation config and weights in the official layout: stacks apart, tied heads once.

        Args:
            state_dict: what to write instead of the model's own weights, under official names or those in memory.
            max_shard_size: bytes of one file at most, or text such as ``200MB`` or ``5GiB``.
            variant: a word in the names of the weights' files, such as ``fp16``; those without it, or of another, stay
                where they are.
            push_to_hub: whether the hub gets the model too, by transformers' ``repo_id``, ``token``, ``private``, ...

        Raises:
            CheckpointError: weights are missing, or the folder cannot be written; one that was not there is then not
                left behind. Or it is written, and the hub did not take it.
            ConfigError: an unusable size or config, or LoRA of our own beside the weights.
        """
        if not is_main_process:
            return
        if self._hf_peft_config_loaded:  # transformers' adapters are saved alone, as transformers does
            weights = None if state_dict is None else dict(state_dict)
            return super().save_pretrained(save_directory, state_dict=weights, push_to_hub=push_to_hub, **kwargs)
        folder, limit = Path(save_directory), parse_size(max_shard_size)
        FileNames.of(variant)  # raises
        if lora_of(self):
            raise ConfigError(
                f"{type(self).__name__} has LoRA beside its weights, which no folder of a model holds: fold it in "
                "(modelwright.training.tuning.merge), or write it alone (save_adapter)"
            )
        config: Any = copy.deepcopy(self.config)
        if foreign_quantization(config) is not None and getattr(self, "hf_quantizer", None) is None:
            forget_foreign_quantization(config)  # a model built of such a config holds floats
        config.architectures = [type(self).__name__]
        config.dtype = str(self.weight_dtype()).removeprefix("torch.")
        state = self.state_dict() if state_dict is None else state_dict
        tied = self.tied_in(state)
        if tied != self.tied_names():  # a head of its own is written, and the file says so
            config.get_text_config().tie_word_embeddings = False
        if (reason := config.not_for_transformers()) is not None:
            logger.warning("modelwright reads this checkpoint and transformers cannot: %s", reason)
        places = {name: place for name, place in self.places().items() if name not in tied}
        weights, earlier = planned_tensors(self, places, state), file_times(folder)
        with _whole(folder):
            config.save_pretrained(folder)
            if self.can_generate() and self.generation_config is not None:
                _write_generation(folder, self.generation_config)
            write_planned(folder, weights, limit, variant)
        if push_to_hub:
            push_folder(self, folder, earlier, {name: kwargs[name] for name in kwargs if name not in SAVING})

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
        self.initialise(module)


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """The folder, made where there is none, and then removed again where writing fails."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
        raise


def _write_generation(folder: Path, config: GenerationConfig) -> None:
    """Write what generation is to be like, as transformers reads it again.

    Its own ``save_pretrained`` refuses what published files hold and it loads: a temperature where nothing is sampled.
    """
    values = json.loads(config.to_json_string(use_diff=True))
    values.pop("compile_config", None)
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / "generation_config.json").write_text(f"{text}\n", encoding="utf-8")


SAVING = frozenset({"safe_serialization", "save_function", "save_peft_format", "save_original_format", "metadata"})
"""transformers' arguments of saving that mean nothing here, where all weights are official safetensors."""
GENERATES = frozenset(
    {
        *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p"),
        *("min_p", "typical_p", "num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
        *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "forced_eos_token_id"),
    }
)
"""What folders without a ``generation_config.json`` may say of generation in their ``config.json``."""


def _generation_config(folder: Path) -> dict[str, GenerationConfig]:
    """``{"generation_config": ...}`` where the folder holds one; older ones say it in their ``config.json``."""
    path = folder / "generation_config.json"
    if path.is_file():
        return {"generation_config": GenerationConfig.from_dict(read_json(path))}
    said = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if said.get("dialect") is not None or GENERATES.isdisjoint(said):
        return {}
    return {"generation_config": GenerationConfig.from_model_config(dict(said))}


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers' bar off while it takes over tensors that are read already."""
    earlier = transformers_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **kwargs | {"disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(earlier)


def _take_quantization(kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """A ``quantization_config`` of ours, out of ``kwargs``; transformers' own stays there, if it is torchao's."""
    given = kwargs.get("quantization_config")
    if is_transformers_quantization(given):
        method = method_of(given)
        if method != TORCHAO:
            raise ConfigError(
                f'quantization_config of quant_method "{method}" is not served; it may be one of '
                f"{', '.join(QUANT_METHODS)} and {TORCHAO}"
            )
        return None
    return kwargs.pop("quantization_config", None)

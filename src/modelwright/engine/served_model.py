"""`ServedModel`, what the engine needs to know of a model, told once from its class and config; it runs nothing."""

from dataclasses import dataclass
from typing import Any, Self

import torch

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.parallel import is_sliced

SERVED = (DeepseekV2ForCausalLM, DeepseekVLV2ForCausalLM, LlamaForCausalLM, ImageGPTForCausalImageModeling)


@dataclass(frozen=True)
class ServedModel:
    """A model in evaluation mode, with all its weights on one device.

    Attributes:
        model: as it was given.
        decoder: the part that reads tokens; `model` itself unless that sees pictures.
        config: the decoder's.
        device: where tokens go in.
        dtype: of the keys and values that its layers make.
        context: how many tokens a sequence may have, its last, which is never read, included.
        reads: how many token ids a prompt may hold.
        draws: how many token ids there are scores for.
        ends: the model's ends of sentence, empty where it names none.
        padding: the id that stands for no token in a prompt; None where every id is one.
        upcasts: whether attention is computed in fp32.
        trained_length: beyond so many tokens a sequence is rotated by its own length; None where none is.
        ranks: how many share it, each with its part of the heads.
    """

    model: Any
    decoder: Any
    config: CheckedConfig
    device: torch.device
    dtype: torch.dtype
    context: int
    reads: int
    draws: int
    ends: tuple[int, ...]
    padding: int | None
    upcasts: bool
    trained_length: int | None
    ranks: int = 1

    @classmethod
    def of(cls, model: Any, ranks: int = 1) -> Self:
        """Look at a model, which is still whole.

        Raises:
            ConfigError: its class has no tokens to draw, it is being trained, its weights are spread over devices, it
                is one rank's part of a model, or its config asks for attention that pages do not serve.
        """
        if not isinstance(model, SERVED):
            names = ", ".join(each.__name__ for each in SERVED)
            raise ConfigError(f"the engine serves {names}; got {type(model).__name__}")
        if model.training:
            raise ConfigError("the engine needs a model in evaluation mode: call model.eval() first")
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        if len(devices) > 1:
            raise ConfigError(f"the engine needs all weights on one device, got {', '.join(devices)}")
        if is_sliced(model):
            raise ConfigError("the engine needs a whole model, of which it keeps its rank's part; got such a part")
        config: Any = model.config.get_text_config()
        _check_attention(config)
        decoder: Any = model.language if isinstance(model, DeepseekVLV2ForCausalLM) else model
        embedding = decoder.get_input_embeddings().weight
        return cls(
            model=model,
            decoder=decoder,
            config=config,
            device=embedding.device,
            dtype=_computed_in(decoder),
            context=_context(config),
            reads=embedding.shape[0],
            draws=decoder.get_output_embeddings().out_features,
            ends=_ends(model.generation_config.eos_token_id),
            padding=_padding(config, _ends(model.generation_config.eos_token_id)),
            upcasts=isinstance(config, ImageGPTConfig) and config.reorder_and_upcast_attn,
            trained_length=_trained_length(config),
            ranks=ranks,
        )

    @property
    def sees(self) -> bool:
        """Whether prompts may hold pictures."""
        return self.model is not self.decoder


def _check_attention(config: CheckedConfig) -> None:
    """Refuse what pages do not serve.

    ``use_flash_attention`` picks between two dense products; over pages there is one, with the same result, whose
    softmax is fp32.
    """
    if not isinstance(config, LlamaConfig):
        return
    if config.use_eod_attn_mask_compression:
        raise ConfigError("use_eod_attn_mask_compression must be False for the engine: its prompts are not packed")
    if config.softmax_compute_type != "float32" and not config.use_flash_attention:
        raise ConfigError(
            f'softmax_compute_type must be "float32" for the engine, which computes it so, unless use_flash_attention '
            f'leaves the type to the kernel; got "{config.softmax_compute_type}" and use_flash_attention=False'
        )


def _computed_in(decoder: Any) -> torch.dtype:
    if isinstance(decoder, LlamaForCausalLM):
        return decoder.model.types.compute or decoder.weight_dtype()
    return decoder.dtype


def _context(config: Any) -> int:
    """A Llama's cap is ``seq_length``, and rope type ``dynamic`` reaches `factor` times as far as was trained.

    A table of positions has none for the last token, and needs none.
    """
    if isinstance(config, ImageGPTConfig):
        return config.n_positions + 1
    cap, scaling = config.max_position_embeddings, config.rope.scaling
    if isinstance(config, LlamaConfig):
        cap = config.seq_length
    if scaling is not None and scaling.kind == "dynamic":
        return max(cap, int(scaling.factor * config.max_position_embeddings))
    return cap


def _ends(given: int | list[int] | None) -> tuple[int, ...]:
    return tuple(given) if isinstance(given, list) else () if given is None else (given,)


def _padding(config: Any, ends: tuple[int, ...]) -> int | None:
    """As `generate()` sees it: a padding id that also ends sentences is a token; and so is one attended to anyway."""
    if config.pad_token_id in ends or (isinstance(config, LlamaConfig) and config.use_attn_mask_compression):
        return None
    return config.pad_token_id


def _trained_length(config: Any) -> int | None:
    if isinstance(config, ImageGPTConfig):  # which has a table of positions
        return None
    scaling = config.rope.scaling
    if scaling is None or scaling.kind not in ("dynamic", "dynamic_ntk"):
        return None
    return scaling.original_max_position_embeddings or config.rope.max_position_embeddings

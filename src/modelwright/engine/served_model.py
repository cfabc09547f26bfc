"""`ServedModel`, what the engine needs to know of a model, told once from its family and config; it runs nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from modelwright.configs import CheckedConfig
from modelwright.configs.decoding import CacheLayout, DecodingRules
from modelwright.errors import ConfigError
from modelwright.families import Family, causal_family, families, resolve
from modelwright.parallel import is_sliced


@dataclass(frozen=True)
class ServedModel:
    """A model in evaluation mode, with all its weights on one device.

    Attributes:
        model: as it was given.
        decoder: the part that reads tokens; `model` itself unless that sees pictures.
        config: the decoder's.
        device: where tokens go in.
        dtype: of the keys and values that its layers make.
        cache: what each layer keeps of a token on this rank.
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
    cache: CacheLayout
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
        if _family(model) and model.training:
            raise ConfigError("the engine needs a model in evaluation mode: call model.eval() first")
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        if len(devices) > 1:
            raise ConfigError(f"the engine needs all weights on one device, got {', '.join(devices)}")
        if devices == ["meta"]:
            raise ConfigError(
                "the engine needs weights in memory, and this model's lie on disk: load it without device_map"
            )
        if is_sliced(model):
            raise ConfigError("the engine needs a whole model, of which it keeps its rank's part; got such a part")
        return cls._read(model, ranks)

    def renewed(self) -> Self:
        """The model as it now is: its device, its type, its ends of sentence and whatever else has changed.

        One that several ranks share is taken to be as it was, and so is the vocabulary of an embedding or a head in
        whose place there is a module that does not tell.
        """
        return self if self.ranks > 1 else self._read(self.model, 1, self.reads, self.draws)

    @classmethod
    def _read(cls, model: Any, ranks: int, reads: int = 0, draws: int = 0) -> Self:
        family = _family(model)
        config: Any = model.config.get_text_config()
        rules: DecodingRules = resolve(family.decoding)(config)
        cache: CacheLayout = resolve(family.cache)(config)
        decoder, ends = family.decoder_of(model), _ends(model.ends_of_sentence())
        embedding, head = decoder.get_input_embeddings(), decoder.get_output_embeddings()
        weight = getattr(embedding, "weight", None)
        return cls(
            model=model,
            decoder=decoder,
            config=config,
            device=(next(model.parameters()) if weight is None else weight).device,
            dtype=decoder.cache_dtype(),
            cache=cache.of_ranks(ranks),
            context=rules.context,
            reads=reads if weight is None else weight.shape[0],
            draws=getattr(head, "out_features", draws) or config.vocab_size,
            ends=ends,
            padding=_padding(config.pad_token_id, ends, rules.attends_to_padding),
            upcasts=rules.upcasts,
            trained_length=rules.trained_length,
            ranks=ranks,
        )

    @property
    def sees(self) -> bool:
        """Whether prompts may hold pictures."""
        return self.model is not self.decoder


def _family(model: Any) -> Family:
    """The family whose causal model this is; a ConfigError that names what is served if there is none."""
    family = causal_family(type(model))
    if family is None:
        names = ", ".join(family.causal for family in families())
        inside = [type(part).__name__ for part in _parts(model) if causal_family(type(part)) is not None]
        hint = (
            f" around a {inside[0]}: give that (of peft's model.get_base_model(), in which LoRA acts)" if inside else ""
        )
        raise ConfigError(f"the engine serves {names}; got {type(model).__name__}{hint}")
    return family


def _parts(model: Any) -> Iterable[nn.Module]:
    return model.modules() if isinstance(model, nn.Module) else ()


def _ends(given: int | list[int] | None) -> tuple[int, ...]:
    return tuple(given) if isinstance(given, list) else () if given is None else (given,)


def _padding(pad: int | None, ends: tuple[int, ...], attended: bool) -> int | None:
    """As `generate()` sees it: a padding id that also ends sentences is a token; and so is one attended to anyway."""
    return None if pad in ends or attended else pad

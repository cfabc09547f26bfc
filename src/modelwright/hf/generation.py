"""transformers' ``generate()``, whose cache goes by either of its names on every release; the rest is as it was."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput, GenerationMixin
from transformers.utils.generic import ModelOutput

from modelwright.errors import RequestError, RequestFailed
from modelwright.hf.cache_names import CACHE_NAME, EitherCacheName, PreparedInputs, with_cache_as
from modelwright.hf.learnt_prompts import refuse_drafts, refuse_other_caches


@dataclass
class GeneratedOutput(EitherCacheName, GenerateDecoderOnlyOutput):
    """What ``generate()`` returns with ``return_dict_in_generate``."""


@dataclass
class GeneratedBeamsOutput(EitherCacheName, GenerateBeamDecoderOnlyOutput):
    """The same of a search with beams."""


_READ_BY_EITHER_NAME: dict[type, type[ModelOutput]] = {
    GenerateDecoderOnlyOutput: GeneratedOutput,
    GenerateBeamDecoderOnlyOutput: GeneratedBeamsOutput,
}


class _Finite(LogitsProcessor):
    """Raises where no token can be drawn because scores are NaN or infinite; they were computed in `dtype`."""

    def __init__(self, dtype: torch.dtype):
        self._dtype = dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not scores.amax(-1).isfinite().all():
            raise RequestFailed.of_scores(self._dtype, bool(scores.isnan().any()))
        return scores


class EitherNameGenerationMixin(GenerationMixin):
    """``GenerationMixin`` for models whose passes take ``cache``, see :mod:`modelwright.hf.cache_names`."""

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """transformers' own, which meet no scores that are no numbers."""
        theirs = super()._get_logits_processor(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return LogitsProcessorList([_Finite(self.dtype), *theirs])  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> PreparedInputs:
        """As transformers', which looks here whether ``inputs_embeds`` are named; the cache goes by either name.

        Raises:
            RequestError: a prompt that peft learnt does not go with the cache.
        """
        refuse_other_caches(self, kwargs.get(CACHE_NAME))  # pyright: ignore[reportArgumentType]
        prepare: Any = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        return PreparedInputs(prepare(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs))

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which drafts tokens: refused beside a prompt that peft learnt."""
        refuse_drafts(self)  # pyright: ignore[reportArgumentType]
        return super()._get_candidate_generator(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: transformers' pages are read by its own attention alone, and by none of the backends here.

        ``generate_batch`` and ``cache_implementation="paged"`` come here too.
        """
        raise RequestError(
            "the continuous batching of transformers, which generate_batch and cache_implementation='paged' are, needs "
            "its own attention: use modelwright.Engine, which serves pages here"
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As transformers'; an earlier cache may be given as ``cache`` or as ``past_key_values``.

        Raises:
            RequestFailed: the model's scores became NaN or infinite, of which transformers draws token 0.
        """
        found = super().generate(*args, **with_cache_as(CACHE_NAME, kwargs))  # pyright: ignore[reportAttributeAccessIssue]
        readable = _READ_BY_EITHER_NAME.get(type(found))
        return found if readable is None else readable(**found)

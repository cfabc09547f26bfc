"""Which keys of a Llama's pass are real and which documents its rows hold, as the config's mask fields say."""

from torch import Tensor

from modelwright.errors import RequestError
from modelwright.families.llama.config import LlamaConfig
from modelwright.hf.arguments import PassInputs
from modelwright.ops.dispatch import numbers_are_known
from modelwright.ops.packing import documents_of


def padding_mask(config: LlamaConfig, inputs: PassInputs) -> Tensor | None:
    """The mask that attention works with: the one given; None if all keys are real.

    Where none is given, MindFormers' dialect finds padding by ``pad_token_id``; Hugging Face's then has none. With
    ``use_attn_mask_compression`` attention is purely causal: padding then needs no mask where it follows every
    real token of its row, and is refused elsewhere. Without a mask, keys of the past count as real.
    """
    mask = inputs.mask
    if config.use_attn_mask_compression and (mask is None or mask.dim() == 2):
        if mask is not None:
            _refuse_early_padding(mask)
        return None
    pad = config.padding_by_id
    if mask is not None or inputs.input_ids is None or pad is None:
        return mask
    real = inputs.input_ids != pad
    return None if numbers_are_known(real) and bool(real.all()) else inputs.over_past(real)


def packed_documents(config: LlamaConfig, inputs: PassInputs) -> Tensor | None:
    """The documents that the caller marked, or with ``use_eod_attn_mask_compression`` those of rows that start here.

    Later tokens belong to the last document of their row; a mask hides the others from them.
    """
    if inputs.documents is not None:
        return inputs.documents
    if not config.use_eod_attn_mask_compression:
        return None
    if isinstance(inputs.past, Tensor):  # of a static cache, while a graph is made
        if inputs.tokens > 1:
            raise RequestError(
                "use_eod_attn_mask_compression=True finds documents in rows that start anew: a pass that is compiled "
                f"over a static cache must bring one token of each row, got {inputs.tokens}"
            )
        return None
    if inputs.past:
        return None
    if inputs.input_ids is None:
        raise RequestError(
            "use_eod_attn_mask_compression=True finds documents by their eos tokens: it needs input_ids, got none"
        )
    return documents_of(inputs.input_ids, config.eos_token_ids)


def _refuse_early_padding(mask: Tensor) -> None:
    real = mask.bool()
    early = ~real & (real.flip(-1).cumsum(-1).flip(-1) > 0)
    if numbers_are_known(early) and bool(early.any()):
        raise RequestError(
            "use_attn_mask_compression=True attends without a mask, so padding must follow all real tokens: "
            f"attention_mask has {int(early.sum())} zeros before a one"
        )

"""Sequence classification, the same for decoders of text: scores at the last token of each row, and their loss.

Leaves out the decoder below. Pictures are classified by their mean, see ``imagegpt.py``.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache

from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.outputs import ClassifierOutput, DecoderOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel


class TextClassifier(ModelwrightPreTrainedModel):
    """A decoder ``model`` with ``num_labels`` scores read at each row's last token that is not padding."""

    new_heads: ClassVar[tuple[str, ...]] = ("score.weight",)
    accepts_loss_kwargs = False  # transformers' Trainer averages micro-batches itself

    model: nn.Module
    score: nn.Module

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ClassifierOutput | tuple:
        """Scores ``[batch, num_labels]``; the loss follows ``config.problem_type`` as elsewhere in transformers."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        result = self._classified(
            outputs, last_tokens(input_ids, attention_mask, outputs[0], self.config.pad_token_id), labels
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()

    def _classified(self, outputs: DecoderOutput, last: Tensor, labels: Tensor | None) -> ClassifierOutput:
        """The scores at the tokens ``last`` ``[batch]``, and their loss with the balance part added."""
        hidden = outputs.last_hidden_state
        assert hidden is not None
        logits = self.score(hidden[torch.arange(len(last), device=last.device), last])
        loss, aux_loss = None, outputs.aux_loss
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            loss = loss if aux_loss is None else loss + aux_loss
        return ClassifierOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
        )


def last_tokens(
    input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor, pad_token_id: int | None
) -> Tensor:
    """``[batch]``: the index of each row's last token that is not padding in ``hidden`` ``[batch, tokens, dim]``.

    Padding is known from a 2-D mask, else from the pad token, else there is none.
    """
    batch, tokens = hidden.shape[:2]
    real = torch.ones(batch, tokens, dtype=torch.bool, device=hidden.device)
    if attention_mask is not None and attention_mask.dim() == 2:
        real = attention_mask[:, -tokens:].bool()
    elif input_ids is not None and pad_token_id is not None:
        real = input_ids != pad_token_id
    return (torch.arange(tokens, device=hidden.device) * real).argmax(dim=-1)

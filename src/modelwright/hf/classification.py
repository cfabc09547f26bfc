"""A decoder with class scores as transformers calls it, and the token of each row that a classifier of text reads."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.caches import Cache
from modelwright.hf.outputs import ClassifierOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel


class Classifier(ModelwrightPreTrainedModel):
    """A :class:`Decoder` under ``base_model_prefix``, and ``num_labels`` scores of each row."""

    new_heads: ClassVar[tuple[str, ...]] = ("score.weight",)
    accepts_loss_kwargs = False  # transformers' Trainer averages micro-batches itself

    score: nn.Module

    @abstractmethod
    def pooled(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """``[batch, dim]``: what the scores are computed from, of the normed ``hidden`` ``[batch, tokens, dim]``."""

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
        """As :meth:`Decoder.forward`, with scores ``[batch, num_labels]``.

        The loss of ``labels`` follows ``config.problem_type`` as elsewhere in transformers.
        """
        outputs = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.score(self.pooled(outputs.last_hidden_state, input_ids, attention_mask))
        loss, aux_loss = None, outputs.aux_loss
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            loss = loss if aux_loss is None else loss + aux_loss
        output = ClassifierOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
        )
        return self.returned(output, return_dict)


class TextClassifier(Classifier):
    """Scores read at each row's last token that is not padding."""

    def pooled(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        last = last_tokens(input_ids, attention_mask, hidden, self.config.pad_token_id)
        return hidden[torch.arange(last.shape[0], device=last.device), last]


def last_tokens(
    input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor, pad_token_id: int | None
) -> Tensor:
    """``[batch]``: the index of each row's last token that is not padding in ``hidden`` ``[batch, tokens, dim]``.

    Padding is what a 2-D mask hides, and, as in transformers, the pad token.
    """
    batch, tokens = hidden.shape[:2]
    real = torch.ones(batch, tokens, dtype=torch.bool, device=hidden.device)
    if attention_mask is not None and attention_mask.dim() == 2:
        real = attention_mask[:, -tokens:].bool().to(hidden.device)
    if input_ids is not None and pad_token_id is not None:
        real = real & (input_ids != pad_token_id).to(hidden.device)
    return (torch.arange(tokens, device=hidden.device) * real).argmax(dim=-1)

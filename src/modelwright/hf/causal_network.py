"""A decoder with a head, called as transformers calls it: logits of the next token, and their loss."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.caches import Cache
from modelwright.hf.network import Network
from modelwright.hf.outputs import CausalOutput
from modelwright.hf.targets import Targets
from modelwright.hf.training_pass import PassCounts, PassLoss, training_counts, training_loads, training_loss
from modelwright.layers.linear import CastLinear, Linear
from modelwright.ops.cross_entropy import IGNORED, summed_cross_entropy
from modelwright.ops.routing import switch_balance_loss


class CausalNetwork(Network):
    """A :class:`DecoderNetwork` under ``base_model_prefix``, and a head over its tokens."""

    draws_tokens = True
    head_name: ClassVar[str] = "lm_head"
    """The module that gives the logits."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens' embeddings."""
        decoder: Any = self.base_model
        return decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace that table."""
        decoder: Any = self.base_model
        decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return getattr(self, self.head_name)

    def set_output_embeddings(self, new_embeddings: nn.Module | None) -> None:
        """Replace the head."""
        setattr(self, self.head_name, new_embeddings)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' ``Trainer`` should pass ``num_items_in_batch``; otherwise it averages micro-batches."""
        return True

    @property
    def takes_aligned_labels(self) -> bool:
        """Whether a label is that of the token after its place, and not of the token that stands there."""
        return False

    @property
    def returns_hidden(self) -> bool:
        """Whether an output holds the last normed hidden states."""
        return False

    def next_tokens(self, labels: Tensor, input_ids: Tensor | None) -> Tensor:
        """What each token is to foresee, ``[batch, tokens]``, of labels as :meth:`forward` is given them.

        It is -100 where nothing counts. Labels are those of the tokens themselves and shifted here.
        """
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def divisor(self, counted: Tensor) -> Tensor:
        """What the sum over ``counted`` labels is divided by for their mean: where none counts there is none."""
        return counted

    def head_weight(self) -> Tensor | None:
        """The matrix ``[vocabulary, dim]`` of a head whose logits are a product with it; None where it must be called.

        That is where hooks or an adapter have a say in what it computes.
        """
        head: Any = self.get_output_embeddings()
        plain = type(head) in (nn.Linear, Linear, CastLinear) and head.bias is None and not is_hooked(head)
        return head.weight if plain else None

    def head(self, x: Tensor) -> Tensor:
        """Logits of normed hidden states, ``[batch, tokens, dim]`` to ``[batch, tokens, vocabulary]``."""
        head: Any = self.get_output_embeddings()
        return head(x)

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
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalOutput | tuple:
        """As :meth:`DecoderNetwork.forward`, with logits.

        Args:
            labels: ``[batch, tokens]``, -100 where nothing is learned; see :meth:`next_tokens`. The first token of a
                row that a 2-D mask pads on the left is not learned: padding would have to foresee it.
            logits_to_keep: compute logits of the last n tokens (0: all), or of the token indices given.
            num_items_in_batch: counted labels of all ranks and micro-batches of a step; the loss is then a sum divided
                by it. Where it is all that this pass was given, those that do not count are left out of it.
            kwargs: those of the decoder, and ``shift_labels`` ``[batch, tokens]``, which go before ``labels`` and are
                those of the tokens after each.

        Returns:
            ``loss`` is what to backpropagate; ``aux_loss`` is its balance part, so ``loss - aux_loss`` is the
            language-model loss. With ``output_router_logits`` balance is as in transformers' mixtures of experts, in
            evaluation too: ``aux_loss`` is :func:`switch_balance_loss` of the ``router_logits``, and
            ``config.router_aux_loss_coef`` weighs it in the loss.
        """
        shift_labels = kwargs.pop("shift_labels", None)  # in the signature, Trainer would always wait for it
        targets = Targets.of(labels, shift_labels, attention_mask, cache, self.takes_aligned_labels)
        if targets is not None:
            targets.refuse_fewer_logits(logits_to_keep)
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
        hidden, loss, balance, routed = outputs.last_hidden_state, None, outputs.aux_loss, outputs.router_logits
        aux_loss = None
        if routed is not None:
            aux_loss = switch_balance_loss(routed, self.config.num_experts_per_tok, real_tokens(attention_mask, hidden))
            balance = self.config.router_aux_loss_coef * aux_loss
        if targets is None:
            logits = self.head(kept_tokens(hidden, logits_to_keep))
        else:
            logits = self.head(targets.beside(hidden))
            loss, balance = self._loss(logits, targets, input_ids, balance, num_items_in_batch)
            logits = logits[:, : hidden.shape[1]]
        output = CausalOutput(
            loss=loss,
            aux_loss=balance if routed is None else aux_loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
            last_hidden_state=hidden if self.returns_hidden else None,
            router_logits=routed,
        )
        return self.returned(output, return_dict)

    def training_loss(
        self, *, labels: Tensor | None, chunk: int | None = None, loads: Tensor | None = None, **inputs: Any
    ) -> PassLoss:
        """The loss of a micro-batch as sums, for a loop that divides once a step; no logits of whole rows are built.

        Args:
            labels: as :meth:`forward`'s.
            chunk: how many tokens have logits at once; None: all.
            loads: the choices of experts of the step's micro-batches together, ``[layers, experts]``, by which balance
                losses over whole batches are then taken.
            inputs: the rest of :meth:`forward`'s arguments. Documents of a packed row of which no label counts, and
                what a 2-D ``attention_mask`` calls padding, neither balance experts nor load them.
        """
        return training_loss(self, labels, chunk, loads, inputs)

    def training_loads(self, *, labels: Tensor | None, **inputs: Any) -> Tensor | None:
        """How often each expert is chosen in a pass without gradients; None where no balance loss asks for it."""
        return training_loads(self, labels, inputs)

    def training_counts(self, *, labels: Tensor | None, **inputs: Any) -> PassCounts:
        """What :meth:`training_loss` will count of the same arguments, without computing it."""
        return training_counts(self, labels, inputs)

    def _loss(
        self,
        logits: Tensor,
        targets: Targets,
        input_ids: Tensor | None,
        aux_loss: Tensor | None,
        num_items: Tensor | int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The loss and its balance part."""
        num_items = num_items if self.accepts_loss_kwargs else None
        ids = None if input_ids is None else targets.beside(input_ids)
        following = self.next_tokens(targets.labels, ids)
        loss, counted = summed_cross_entropy(logits, following), (following != IGNORED).sum()
        divisor = self.divisor(counted) if num_items is None else torch.as_tensor(num_items)
        loss = loss / divisor.to(loss.device)
        items = targets.items(num_items, counted)
        if num_items is not None and items is not None:
            loss = loss * (num_items / items)
        return with_balance(loss, aux_loss, counted, items)

    @torch.no_grad()
    def keep_stage(self, layers: range, *, embedding: bool, head: bool) -> None:
        """As :meth:`DecoderNetwork.keep_stage`; the head goes with the final norm."""
        decoder: Any = self.base_model
        decoder.keep_stage(layers, embedding=embedding, head=head)
        if not head:
            self.set_output_embeddings(None)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than its ``forward``."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def kept_tokens(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The tokens of ``hidden`` ``[batch, tokens, dim]`` that get logits: the last n (0: all), or those at indices."""
    return hidden[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


def real_tokens(mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Which of the new tokens of ``hidden`` ``[batch, tokens, dim]`` a 2-D mask calls real; None where all are."""
    return None if mask is None or mask.dim() != 2 else mask[:, mask.shape[1] - hidden.shape[1] :]


def with_balance(
    loss: Tensor, aux_loss: Tensor | None, counted: Tensor, num_items: Tensor | int | None
) -> tuple[Tensor, Tensor | None]:
    """The loss and its balance part.

    Where the loss is a sum over ``num_items`` labels of several passes, the part gets the share of the ``counted``
    labels of this one.
    """
    if aux_loss is None:
        return loss, None
    if num_items is not None:
        aux_loss = aux_loss * counted / num_items
    return loss + aux_loss, aux_loss

"""A decoder without a head as transformers calls it: one forward pass around the parts that a family writes.

A family writes what its paper says: how tokens become ``x``, what the layers make of it, and the final norm. Arguments,
the cache, kept hidden states and the output are the same for all and stand here.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.errors import RequestError
from modelwright.hf.arguments import (
    PassInputs,
    check_tokens,
    refuse_attentions,
    refuse_unknown,
    rows_of_positions,
)
from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.caches import Cache, pass_cache
from modelwright.hf.documents import DocumentMarks
from modelwright.hf.network import Network
from modelwright.hf.outputs import DecoderOutput
from modelwright.layers import Routing, StackOutput
from modelwright.ops.dispatch import numbers_are_known
from modelwright.ops.packing import positions_in_documents


class DecoderNetwork(Network):
    """Token ids or embeddings to normed hidden states ``[batch, tokens, dim]``: embed, run the layers, finish.

    Each of the three steps runs alone, so that a stage of a pipeline can hold any of them (:meth:`keep_stage`). Every
    stage makes positions and attention of the same :class:`PassInputs`, and only ``x`` passes between them.
    """

    embedding_names: ClassVar[tuple[str, ...]]
    """The modules that :meth:`embed` needs."""

    norm_name: ClassVar[str]
    """The module that :meth:`finish` needs."""

    packs_documents: ClassVar[bool] = False
    """Whether :meth:`attention_of` keeps the documents of ``PassInputs.documents`` apart."""

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens' embeddings."""
        return getattr(self, self.embedding_names[0])

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace that table."""
        setattr(self, self.embedding_names[0], value)

    @abstractmethod
    def stack(self) -> nn.ModuleList:
        """The layers; one that another stage holds is None."""

    def layers_in_use(self) -> Sequence[nn.Module | None]:
        """The first ``num_hidden_layers`` of them: an early exit, which drafts tokens, lowers it for some passes."""
        return list(self.stack())[: self.config.num_hidden_layers]

    @abstractmethod
    def positions_of(self, inputs: PassInputs) -> Tensor:
        """Where the tokens stand, ``[batch, tokens]``, where the caller does not say it."""

    @abstractmethod
    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        """What lets the tokens see the keys that their mask and cache say, where the caller brings nothing."""

    @abstractmethod
    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        """What enters the first layer, ``[batch, tokens, dim]``, of one of ids and embeddings."""

    @abstractmethod
    def run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        keep: bool = False,
        only: Tensor | None = None,
    ) -> StackOutput:
        """What the layers held here make of ``x`` ``[batch, tokens, dim]``.

        Args:
            keep: whether their inputs are returned, too.
            only: the indices of the only tokens that are wanted of the last layer; all by default.
        """

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """The final norm: what a head reads."""

    @property
    def balances_sequences(self) -> bool:
        """Whether :meth:`balance_loss` is a mean over sequences, and otherwise one number of all tokens together."""
        return False

    @property
    def balances_batches(self) -> bool:
        """Whether there is one, of which the micro-batches of a step must know each other's choices of experts."""
        return False

    @abstractmethod
    def balance_loss(self, routings: Sequence[Routing], batch: int, documents: Tensor | None = None) -> Tensor | None:
        """The scaled balance losses of a pass's routers, summed; only asked where there are any.

        ``documents`` ``[batch, tokens]`` are those of rows that hold several.
        """

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention: AttentionBackend | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | Tensor | None = None,
        max_length_k: int | Tensor | None = None,
        seq_idx: Tensor | None = None,
        output_router_logits: bool | None = None,
        output_routings: bool = False,
        tokens_to_keep: Tensor | None = None,
        **extras,
    ) -> DecoderOutput | tuple:
        """One pass.

        Args:
            input_ids: ``[batch, tokens]``, or ``inputs_embeds`` ``[batch, tokens, dim]``; one of the two.
            attention_mask: ``[batch, past + tokens]`` with 0 at padding, or 4-D: see :class:`DenseAttention`. Some
                families find padding in the ids where there is none.
            position_ids: ``[batch, tokens]``; by default each family counts them its own way. Positions that start anew
                mark documents that do not see each other, see :class:`DocumentMarks`.
            cache: a transformers cache of what the layers keep of each token.
            attention: a backend to use instead of the one built from the mask and the cache, by who has checked the
                tokens: a recorded pass may not wait for their numbers.
            cu_seq_lens_q, cu_seq_lens_k, seq_idx: other marks of documents, see :class:`DocumentMarks`; without
                ``position_ids``, positions then start anew with each document.
            max_length_q, max_length_k: tokens of the longest document, which the other marks say already.
            output_routings: whether to return what the routers decided; their balance loss is then the caller's.
            tokens_to_keep: the indices of the only tokens whose hidden states are wanted, the same in each row: what
                the last layer does after its attention is left out for the others.
            output_router_logits: whether to return each router's logits, ``[batch * tokens, experts]`` in fp32; by
                default as the config says.

        Raises:
            RequestError: the arguments contradict each other or the config, a token is not in the vocabulary, attention
                weights are asked for, or rows hold several documents and the family does not keep them apart.
            TypeError: an argument that is not known here.
        """
        refuse_unknown(extras, type(self))
        refuse_attentions(self.config, output_attentions)
        wanted = self.config.use_cache if use_cache is None else use_cache
        given = cache is not None
        cache = pass_cache(cache, bool(wanted), attention, self.stack())
        marks = None
        if attention is None:
            marks = DocumentMarks(position_ids, cu_seq_lens_q, cu_seq_lens_k, seq_idx, cache is not None, given)
        inputs = PassInputs.of(input_ids, inputs_embeds, attention_mask, cache, marks)
        if input_ids is not None and attention is None:
            check_tokens(input_ids, self.config)
        if inputs.documents is not None:
            inputs = self._packed(inputs)
        if position_ids is not None:
            positions = rows_of_positions(position_ids, inputs.batch, inputs.tokens)
        elif inputs.documents is not None:
            positions = positions_in_documents(inputs.documents)
        else:
            positions = self.positions_of(inputs)
        attention = self.attention_of(inputs) if attention is None else attention
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        x = self.embed(positions, input_ids, inputs_embeds)
        ran = self.run_layers(x, positions, attention, bool(keep), tokens_to_keep)
        x = self.finish(ran.x)
        routed = getattr(self.config, "output_router_logits", False)
        logits = routed if output_router_logits is None else output_router_logits
        aux_loss = None
        if self.training and ran.routings and not output_routings:
            aux_loss = self.balance_loss(ran.routings, inputs.batch, inputs.documents)
        output = DecoderOutput(
            last_hidden_state=x,
            **of_cache(cache),
            hidden_states=(*ran.inputs, x) if keep else None,
            router_logits=tuple(r.logits for r in ran.routings) if logits and ran.routings else None,
            aux_loss=aux_loss,
            routings=ran.routings if output_routings and ran.routings else None,
        )
        return self.returned(output, return_dict)

    def _packed(self, inputs: PassInputs) -> PassInputs:
        """The inputs of a pass whose rows hold documents; refused by families that cannot keep them apart."""
        if self.packs_documents:
            return inputs
        assert inputs.documents is not None
        if not numbers_are_known(inputs.documents):  # a graph is not refused for what its inputs may hold
            return replace(inputs, documents=None)
        raise RequestError(
            f"{type(self).__name__} does not keep documents of one row apart: position_ids must count on from token to "
            "token, and cu_seq_lens_q, cu_seq_lens_k and seq_idx must not be given; give each document a row"
        )

    @torch.no_grad()
    def keep_stage(self, layers: range, *, embedding: bool, head: bool) -> None:
        """Let go, in place, of what this stage of a pipeline does not hold; names and numbers of layers stay.

        Args:
            layers: the numbers of the layers to keep.
            embedding: whether to keep what :meth:`embed` needs.
            head: whether to keep what :meth:`finish` needs.
        """
        stack = self.stack()
        for layer in range(len(stack)):
            if layer not in layers:
                stack[layer] = None  # pyright: ignore[reportArgumentType]
        gone = (() if embedding else self.embedding_names) + (() if head else (self.norm_name,))
        for name in gone:
            setattr(self, name, None)

"""Llama (arXiv:2302.13971, 2407.21783) in both dialects: the decoder, and its head for language modelling.

Leaves out the layers (``parts.py``), masks and documents (``padding.py``), the loss (``loss.py``), what transformers'
callers ask of any decoder (``hf``), the classes that transformers knows (``model.py``), and where keys and values live
(``attention``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from modelwright.attention import AttentionBackend, attention_over
from modelwright.errors import CheckpointError
from modelwright.families.llama.balance import balances, llama_balance_loss
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.loss import next_tokens
from modelwright.families.llama.padding import packed_documents, padding_mask
from modelwright.families.llama.parts import LlamaDecoderLayer, Types, build_norm, build_rope
from modelwright.hf.arguments import PassInputs
from modelwright.hf.causal_network import CausalNetwork
from modelwright.hf.decoder_network import DecoderNetwork
from modelwright.hf.network import Network
from modelwright.layers import Routing, StackOutput, column_linear, run_stack
from modelwright.ops.packing import positions_in_documents


class LlamaNetwork(Network):
    """What the Llama networks share: their config and the types of their weights."""

    config_class = LlamaConfig
    config: LlamaConfig
    base_model_prefix = "model"

    def named_checkpoint(self) -> Path | None:
        named = self.config.checkpoint_name_or_path
        if named and not Path(named).is_dir():
            raise CheckpointError(f'checkpoint_name_or_path "{named}" must name an existing folder, and it does not')
        return Path(named) if named else None

    def stored_types(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """As built: the config, which ``dtype=`` of ``from_pretrained`` goes through, names several."""
        state = self.state_dict()
        return {name: state[place.parameter].dtype for name, place in self.places().items()}

    def weight_dtype(self) -> torch.dtype:
        """The type of the projections, which embedding and norms need not share, or were rounded from."""
        projections = (p.dtype for name, p in self.named_parameters() if name.endswith("o_proj.weight"))
        return next(projections, getattr(torch, self.config.param_init_type))

    def cache_dtype(self) -> torch.dtype:
        return Types.of(self.config).compute or self.weight_dtype()


class LlamaDecoder(LlamaNetwork, DecoderNetwork):
    """The decoder without a head.

    In MindFormers' dialect tokens that are ``pad_token_id`` are padding where no mask is given. Positions count
    padding.
    """

    unused_tensors = (*Network.unused_tensors, r"^(lm_head|score)\.weight$")
    embedding_names = ("embed_tokens",)
    norm_name = "norm"
    packs_documents = True

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.types = Types.of(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary = build_rope(config)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = build_norm(config)
        for part in (self.embed_tokens, self.norm):
            self.types.store(part)
        self.post_init()

    @property
    def balances_batches(self) -> bool:
        return self.config.has_experts and balances(self.config)

    def stack(self) -> nn.ModuleList:
        return self.layers

    def positions_of(self, inputs: PassInputs) -> Tensor:
        """Counted from the past, or with ``reset_position_ids`` from each document's start."""
        documents = packed_documents(self.config, inputs)
        if documents is not None and self.config.reset_position_ids:
            return positions_in_documents(documents)
        return inputs.positions()

    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        documents, mask = packed_documents(self.config, inputs), padding_mask(self.config, inputs)
        fused = self.config.use_flash_attention and self.config._attn_implementation != "eager"
        return attention_over(documents, mask, inputs.cache, inputs.past, fused, self.types.softmax)

    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return x if self.types.compute is None else x.to(self.types.compute)

    def run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        keep: bool = False,
        only: Tensor | None = None,
    ) -> StackOutput:
        return run_stack(self.layers_in_use(), x, self.rotary(positions), attention, keep=keep, only=only)

    def finish(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1) if self.config.rmsnorm_compute_2d else x  # [batch * tokens, dim]
        return self.norm(rows).view(x.shape)

    def balance_loss(self, routings: Sequence[Routing], batch: int, documents: Tensor | None = None) -> Tensor | None:
        return llama_balance_loss(self.config, routings)


class LlamaCausal(LlamaNetwork, CausalNetwork):
    """The decoder with a language-model head."""

    decoder_class: ClassVar[type[LlamaDecoder]] = LlamaDecoder
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = self.decoder_class(config)
        types = self.model.types
        vocabulary, slices = config.vocab_size, config.pretraining_tp
        self.lm_head = column_linear(config.hidden_size, vocabulary, slices=slices, compute=types.compute)
        types.store(self.lm_head)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        return self.config.calculate_per_token_loss

    @property
    def takes_aligned_labels(self) -> bool:
        return self.config.input_sliced_sig

    @property
    def returns_hidden(self) -> bool:
        return self.config.return_hidden_states

    def next_tokens(self, labels: Tensor, input_ids: Tensor | None) -> Tensor:
        """See :func:`~modelwright.families.llama.loss.next_tokens` for what is shifted and masked."""
        return next_tokens(labels, input_ids, self.config)

    def divisor(self, counted: Tensor) -> Tensor:
        """As MindFormers': a batch in which no label counts has a loss of zero."""
        return counted.clamp(min=1)

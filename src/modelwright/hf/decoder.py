"""A decoder without a head as one of transformers' models."""

from modelwright.hf.decoder_network import DecoderNetwork
from modelwright.hf.pretrained import ModelwrightPreTrainedModel


class Decoder(DecoderNetwork, ModelwrightPreTrainedModel):
    """Token ids or embeddings to normed hidden states ``[batch, tokens, dim]``, loaded and saved by transformers."""

"""Rows to documents: tokens, and which of them are learned. A file for each kind of model's processor."""

from modelwright.data.encoding.encoder import encoder_of

__all__ = ["encoder_of"]

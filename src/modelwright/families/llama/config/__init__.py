"""The configuration of Llama: its fields, names, dialects, rules and views."""

from modelwright.families.llama.config.config import LlamaConfig

__all__ = ["LlamaConfig"]

"""Checkpoint files: shards and headers, the places of tensors in memory, conversion and quantization of folders."""

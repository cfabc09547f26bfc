"""Exported graphs beside the models they were made from: inputs of any lengths, and both sides' outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from hypothesis import strategies as st
from transformers import DynamicCache

from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling

IMAGEGPT: dict[str, Any] = {
    "vocab_size": 17,
    "n_positions": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.3,
}

lengths = st.fixed_dictionaries(
    {"batch": st.integers(1, 4), "sequence": st.integers(1, 7), "past": st.integers(0, 12), "seed": st.integers(0, 99)}
)
"""The lengths of one comparison; past 0 and one new token are among them."""


def tiny_imagegpt(seed: int = 0, **fields: Any) -> ImageGPTForCausalImageModeling:
    """An ImageGPT with random weights, in eval mode."""
    torch.manual_seed(seed)
    return ImageGPTForCausalImageModeling(ImageGPTConfig(**IMAGEGPT | fields)).eval()


def open_graph(folder: Path) -> Any:
    """The decoder in plain onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(folder / "decoder.onnx"), options)


def largest_delta(
    model: Any, session: Any, batch: int, sequence: int, past: int, seed: int, padded: bool = False
) -> float:
    """The largest difference over logits and cache after two passes: of ``past`` tokens (if any) and of ``sequence``.

    Each side continues its own cache, so that differences would grow.
    """
    numbers = np.random.default_rng(seed)
    ids = numbers.integers(model.config.vocab_size, size=(batch, past + sequence))
    mask = np.ones_like(ids)
    if padded:
        mask = (np.arange(past + sequence) >= numbers.integers(past + sequence, size=(batch, 1))).astype(np.int64)
    cache, largest = DynamicCache(), 0.0
    pasts = _nothing(session, batch)
    for start, stop in ((0, past), (past, past + sequence)):
        if start == stop:
            continue
        feeds = {"input_ids": ids[:, start:stop], "logits_to_keep": np.array([0]), **pasts}
        if "attention_mask" in [tensor.name for tensor in session.get_inputs()]:
            feeds["attention_mask"] = mask[:, :stop]
        names = [tensor.name for tensor in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        with torch.no_grad():
            expected = model(
                torch.from_numpy(ids[:, start:stop]),
                attention_mask=torch.from_numpy(mask[:, :stop]) if "attention_mask" in feeds else None,
                past_key_values=cache,
            )
        kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        for tensor, array in zip((expected.logits, *kept), found.values(), strict=True):
            assert tensor.shape == array.shape and tensor.numpy().dtype == array.dtype
            largest = max(largest, float(np.abs(tensor.numpy() - array).max()))
        pasts = {name.replace("present", "past"): found[name] for name in names[1:]}
    return largest


def _nothing(session: Any, batch: int) -> dict[str, np.ndarray]:
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        tensor.name: np.zeros((batch, tensor.shape[1], 0, tensor.shape[3]), dtypes[tensor.type])
        for tensor in session.get_inputs()
        if tensor.name.startswith("past.")
    }

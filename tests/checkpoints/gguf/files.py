"""Tiny GGUF files as llama.cpp's own converter writes them, made by the ``gguf`` package; nothing is asserted here."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

TYPES = gguf.GGMLQuantizationType
SIZES = {
    "block_count": 2, "context_length": 128, "embedding_length": 256, "feed_forward_length": 512,
    "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 64,
}  # fmt: skip
TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "\u2581",
    "a",
    "b",
    "\u2581a",
    "ab",
    "\u2581ab",
]
KINDS = [2, 3, 3, *[6] * 256, *[1] * 6]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": KINDS,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def write_file(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[np.ndarray, str]]) -> Path:
    """A file of this metadata, and of tensors that are encoded as their types; K-blocks come as bytes."""
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
            continue
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
        writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.STRING))
    for name, (numbers, kind) in tensors.items():
        encoded = numbers if numbers.dtype == np.uint8 else gguf.quantize(numbers, TYPES[kind])
        writer.add_tensor(name, encoded, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """What a Llama's file says; keys with a point are whole ones, all others the architecture's."""
    told = SIZES | {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0, "vocab_size": len(TOKENS)}
    own = {f"llama.{key}": value for key, value in told.items()} | TOKENIZER
    return {key: value for key, value in (own | changes).items() if value is not None}


def llama_tensors(kind: str, **kinds: str) -> dict[str, tuple[np.ndarray, str]]:
    """A Llama's random tensors, matrices of one kind and norms in float32."""
    draw, width, inner, keys = np.random.default_rng(0), 256, 512, 128
    shapes = {
        "attn_norm": (width,), "attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width),
        "attn_output": (width, width), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }  # fmt: skip
    named = {f"blk.{i}.{part}.weight": shape for i in range(2) for part, shape in shapes.items()}
    named |= {"token_embd.weight": (len(TOKENS), width), "output_norm.weight": (width,)}
    made = {}
    for name, shape in named.items():
        numbers = (0.05 * draw.standard_normal(shape)).astype(np.float32)
        if len(shape) == 1:
            made[name] = (1 + numbers, "F32")
        else:
            made[name] = (_encoded(numbers, kinds.get(name, kind), draw), kinds.get(name, kind))
    return made


def _encoded(numbers: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """K-blocks, which ``gguf`` cannot write, as random bytes between scales of a usual size."""
    if not kind.endswith("_K"):
        return numbers
    block, nbytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    rows, blocks = numbers.shape[0], numbers.shape[1] // block
    stored = draw.integers(0, 256, (rows, blocks, nbytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    places = [208] if kind == "Q6_K" else [0, 2]
    for place in places:
        stored[:, :, place : place + 2] = scale
    return stored.reshape(rows, -1)

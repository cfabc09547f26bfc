"""MindFormers' names for the tensors of a Llama against Hugging Face's, with the layout of each; no files here.

Names and shapes are those of MindFormers' ``LlamaForCausalLM`` (dense, or with ``moe_config.expert_num`` above 1).
Weights of both are ``[out, in]`` and neither permutes queries or keys, so every tensor passes bit for bit.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from modelwright.checkpoints.layouts import (
    Consecutive,
    Interleaved,
    Layout,
    PackedTensor,
    QkvGroups,
    Stacked,
    StackedGateUp,
)
from modelwright.families.llama.config import LlamaConfig

Qkv = Literal["split", "groups", "consecutive"]
ExpertStack = Literal["batched", "transposed", "grouped"]
FUSED_QKV: dict[str, Qkv] = {"attention.w_qkv.weight": "groups", "attention.w.weight": "consecutive"}
"""The name inside a layer of each way to fuse query, key and value."""

NO_WEIGHTS = {
    r"(^|\.)(key|value)_cache(_grad)?$|(^|\.)(seq_chunk|mask_cache|pi_cache|fi_cache)$": "a cache of the run",
    r"(^|\.)expert_load$": "a counter of the run",
    r"^(adam_[mv]|exp_avg(_sq)?|moments?[12]?|momentum|accum_grads|fp32_params)\.": "state of the optimizer",
    r"^(global_step|learning_rate|beta[12]_power|scale_sense|loss_scale|epoch_num|step_num|current_iterator_step|"
    r"last_overflow_iterator_step|current_factor|global_batch_size)$": "state of the training run",
}
"""Patterns of tensors that MindFormers saves beside the weights, and what they are."""


@dataclass(frozen=True)
class Packing:
    """Which of MindFormers' layouts a checkpoint has.

    Attributes:
        qkv: ``split`` (``wq``, ``wk``, ``wv``), ``groups`` (``w_qkv`` per key head) or ``consecutive`` (``w``, of the
            decoder layers that ``fine_grain_interleave`` builds).
        gate_up: the gate and up projections of a dense layer are interleaved in ``w_gate_hidden``.
        experts: ``batched`` (``[E, out, in]``: training with capacity), ``transposed`` (``[E, in, out]``: inference)
            or ``grouped`` (``use_gmm``: gate and up in one ``[E, in, 2 * out]``).
    """

    qkv: Qkv = "split"
    gate_up: bool = False
    experts: ExpertStack = "batched"


def packing_of(config: LlamaConfig) -> Packing:
    """The layout that MindFormers builds for ``config``, and that we therefore write."""
    moe = config.moe_config
    interleaved = config.fine_grain_interleave > 1 and config.parallel_config.model_parallel > 1
    experts: ExpertStack = "transposed" if config.use_past else "grouped" if moe and moe.use_gmm else "batched"
    if not config.qkv_concat:
        return Packing("split", False, experts)
    return Packing("consecutive", False, experts) if interleaved else Packing("groups", True, experts)


def recognise(config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]]) -> Packing:
    """The layout of the tensors called and shaped like ``shapes``, whatever ``config`` says of it.

    MindFormers fuses a split checkpoint while loading it, so either may lie beside a config with ``qkv_concat``. Only
    square expert matrices, which look the same either way, are taken as :func:`packing_of` says.
    """
    ends = {name.split(".", 3)[-1] for name in shapes if name.startswith("model.layers.")}
    qkv: list[Qkv] = [kind for end, kind in FUSED_QKV.items() if end in ends]
    return Packing(
        qkv[0] if qkv else "split",
        "feed_forward.w_gate_hidden.weight" in ends,
        _recognise_experts(config, shapes, ends),
    )


def _recognise_experts(config: LlamaConfig, shapes: Mapping[str, tuple[int, ...]], ends: set[str]) -> ExpertStack:
    if any(end.endswith("router_dense.weight") for end in ends):
        return "grouped"
    said = packing_of(config).experts
    found = next((shape[1:] for name, shape in shapes.items() if name.endswith(".ffn.w1.weight")), ())
    if config.hidden_size != config.intermediate_size and len(found) == 2:
        return "transposed" if found == (config.hidden_size, config.intermediate_size) else "batched"
    return "batched" if said == "grouped" else said


def left_out(name: str) -> str | None:
    """Why a tensor of a MindFormers file is no weight of the model; None for all that should be one."""
    return next((reason for pattern, reason in NO_WEIGHTS.items() if re.search(pattern, name)), None)


def usual_name(name: str) -> str:
    """The name in :func:`mindformers_tensors` of a tensor that some of MindFormers' versions call otherwise."""
    return name.replace(".router.e_score_correction_bias", ".router.router.topk_bias")


def mindformers_tensors(config: LlamaConfig, packing: Packing) -> Iterator[PackedTensor]:
    """Every tensor of the model in MindFormers' order, packed as asked."""
    vocabulary = (config.vocab_size, config.hidden_size)
    yield _same("model.tok_embeddings.embedding_weight", "model.embed_tokens.weight", *vocabulary)
    for n in range(config.num_hidden_layers):
        theirs, hf = f"model.layers.{n}", f"model.layers.{n}"
        yield from _attention(config, packing.qkv, f"{theirs}.attention", f"{hf}.self_attn")
        if config.has_experts:
            yield from _experts(config, packing.experts, f"{theirs}.feed_forward", f"{hf}.block_sparse_moe")
        else:
            width = config.intermediate_size
            yield from _dense(config, width, packing.gate_up, f"{theirs}.feed_forward", f"{hf}.mlp")
        yield _same(f"{theirs}.attention_norm.weight", f"{hf}.input_layernorm.weight", config.hidden_size)
        yield _same(f"{theirs}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", config.hidden_size)
    yield _same("model.norm_out.weight", "model.norm.weight", config.hidden_size)
    if not config.tie_word_embeddings:
        yield _same("lm_head.weight", "lm_head.weight", *vocabulary)


def _same(name: str, hf: str, *shape: int) -> PackedTensor:
    return PackedTensor(name, shape, {hf: shape})


def _attention(config: LlamaConfig, qkv: Qkv, theirs: str, hf: str) -> Iterator[PackedTensor]:
    hidden, kv_heads = config.hidden_size, config.num_key_value_heads
    heads = config.num_attention_heads * config.head_dim
    widths = (heads, kv_heads * config.head_dim, kv_heads * config.head_dim)
    fused: dict[Qkv, tuple[str, Layout]] = {
        "groups": ("w_qkv", QkvGroups(kv_heads, config.num_attention_heads // kv_heads)),
        "consecutive": ("w", Consecutive(widths)),
    }
    for kind, columns in (("weight", (hidden,)), ("bias", ())):
        if kind == "bias" and not config.qkv_has_bias:
            continue
        parts = {f"{hf}.{x}_proj.{kind}": (width, *columns) for x, width in zip("qkv", widths, strict=True)}
        if qkv in fused:
            name, layout = fused[qkv]
            yield PackedTensor(f"{theirs}.{name}.{kind}", (sum(widths), *columns), parts, layout)
        else:
            for x, (part, shape) in zip("qkv", parts.items(), strict=True):
                yield _same(f"{theirs}.w{x}.{kind}", part, *shape)
    yield _same(f"{theirs}.wo.weight", f"{hf}.o_proj.weight", hidden, heads)
    if config.attn_proj_has_bias:
        yield _same(f"{theirs}.wo.bias", f"{hf}.o_proj.bias", hidden)


def _dense(config: LlamaConfig, width: int, fused: bool, theirs: str, hf: str) -> Iterator[PackedTensor]:
    hidden = config.hidden_size
    gate, up = f"{hf}.gate_proj.weight", f"{hf}.up_proj.weight"
    if fused:
        parts = {gate: (width, hidden), up: (width, hidden)}
        yield PackedTensor(f"{theirs}.w_gate_hidden.weight", (2 * width, hidden), parts, Interleaved())
    else:
        yield _same(f"{theirs}.w1.weight", gate, width, hidden)
        yield _same(f"{theirs}.w3.weight", up, width, hidden)
    yield _same(f"{theirs}.w2.weight", f"{hf}.down_proj.weight", hidden, width)


def _experts(config: LlamaConfig, stack: ExpertStack, theirs: str, hf: str) -> Iterator[PackedTensor]:
    moe, hidden = config.moe_config, config.hidden_size
    routed = f"{theirs}.routed_experts" if moe.shared_expert_num else theirs
    router = f"{routed}.router_dense.weight" if stack == "grouped" else f"{routed}.router.dense.weight"
    yield _same(router, f"{hf}.gate.weight", moe.expert_num, hidden)
    if moe.balance_via_topk_bias:
        bias = f"{routed}.topk_bias" if stack == "grouped" else f"{routed}.router.router.topk_bias"
        yield _same(bias, f"{hf}.gate.e_score_correction_bias", moe.expert_num)
    yield from _routed(config, stack, f"{routed}.ffn", f"{hf}.experts")
    if moe.shared_expert_num:
        width = config.intermediate_size * moe.shared_expert_num
        yield from _dense(config, width, False, f"{theirs}.shared_experts", f"{hf}.shared_experts")
        if moe.use_shared_expert_gating:
            yield _same(f"{theirs}.shared_experts_gate.weight", f"{hf}.shared_expert_gate.weight", 1, hidden)


def _routed(config: LlamaConfig, stack: ExpertStack, theirs: str, hf: str) -> Iterator[PackedTensor]:
    experts, hidden, width = config.moe_config.expert_num, config.hidden_size, config.intermediate_size
    shapes = {"w1": (width, hidden), "w2": (hidden, width), "w3": (width, hidden)}

    def parts(*names: str) -> dict[str, tuple[int, ...]]:
        return {f"{hf}.{e}.{name}.weight": shapes[name] for e in range(experts) for name in names}

    if stack == "grouped":
        yield PackedTensor(f"{theirs}.w1", (experts, hidden, 2 * width), parts("w1", "w3"), StackedGateUp())
        yield PackedTensor(f"{theirs}.w2", (experts, width, hidden), parts("w2"), Stacked(transposed=True))
        return
    flipped = stack == "transposed"
    for name, shape in shapes.items():
        stored = (experts, *(shape[::-1] if flipped else shape))
        yield PackedTensor(f"{theirs}.{name}.weight", stored, parts(name), Stacked(flipped))

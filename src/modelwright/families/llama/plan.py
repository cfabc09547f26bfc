"""Llama's sizes from its config, and what the config states about a run: types, layout, recomputation."""

from typing import Any

from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.names import MINDFORMERS
from modelwright.planner.computing import Computing, kept_by_activation
from modelwright.planner.counts import Counts
from modelwright.planner.layout import Layout
from modelwright.planner.precision import BYTES_OF
from modelwright.planner.settings import RunSettings, Types
from modelwright.planner.shapes import ExpertFeedForward, FeedForward, GroupedAttention, Layer, Linear
from modelwright.planner.stored import ModuleNames

_FUSED = {"q": ("wq", "w_qkv", "qkv_proj"), "k": ("wk", "w_qkv", "qkv_proj"), "v": ("wv", "w_qkv", "qkv_proj")}
_FEED_FORWARD = {"gate": ("w1", "w_gate_hidden", "gate_up_proj"), "up": ("w3", "w_gate_hidden", "gate_up_proj")}
NAMES = ModuleNames(
    experts="block_sparse_moe.experts.0",
    shared="block_sparse_moe.shared_experts",
    others={f"attention.{name}_proj": others for name, others in (_FUSED | {"o": ("wo",)}).items()}
    | {
        f"{part}.{name}_proj": others
        for part in ("dense", "experts", "shared")
        for name, others in (_FEED_FORWARD | {"down": ("w2",)}).items()
    },
)
"""Hugging Face's names, and beside them MindFormers' and those of fused matrices."""


def count_llama(config: LlamaConfig) -> Counts:
    """The decoder with its language-model head; projections count the same fused and apart."""
    attention = GroupedAttention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        qkv_bias=config.qkv_has_bias,
        out_bias=config.attn_proj_has_bias,
        turned_by_matrix=not config.use_rope_slice,
    )
    feed_forward = _experts(config) if config.has_experts else _feed_forward(config)
    layer = Layer(attention, feed_forward, norms=2 * config.hidden_size, computing=_computing(config))
    return Counts(
        model_type=config.model_type,
        dim=config.hidden_size,
        vocab=config.vocab_size,
        layers=(layer,) * config.num_hidden_layers,
        final_norm=config.hidden_size,
        head=Linear(config.hidden_size, config.vocab_size, cut="outputs"),
        tied=config.tie_word_embeddings,
        names=NAMES,
    )


def run_settings(config: LlamaConfig) -> RunSettings:
    """What the fields of MindFormers state about a run.

    The config stores norms in `layernorm_compute_type`, whatever type is asked for the model; it computes and caches
    in `compute_dtype`.

    Raises:
        ConfigError: a part of a pipeline is described, or recomputation for another number of stages.
    """
    stays = not config.norm_init_type
    return RunSettings(
        types=Types(config.param_init_type, config.embedding_dtype, config.norm_dtype, config.compute_dtype, stays),
        layout=_layout(config),
        explicit_attention=not config.use_flash_attention,
        recompute=_recompute(config),
        batch=config.batch_size,
        row=config.seq_length if config.dialect == MINDFORMERS else None,
    )


def _computing(config: LlamaConfig) -> Computing:
    return Computing(
        norm="fused_rms" if config.fused_rms_norm else "rms",
        norm_bytes=BYTES_OF[config.layernorm_compute_type],
        kept_by_activation=kept_by_activation(config.hidden_act),
        attention_dropout=config.attention_dropout > 0,
        softmax_bytes=BYTES_OF[config.softmax_compute_type],
        rotary_bytes=None if config.rotary_dtype == config.compute_dtype else BYTES_OF[config.rotary_dtype],
    )


def _layout(config: LlamaConfig) -> Layout | None:
    """The layout that `parallel_config` asks for; None where it asks for one device."""
    degrees, settings = config.parallel_config, config.parallel
    if degrees.devices == 1:
        return None
    if settings.first_stage or sum(map(len, settings.stage_layers)) % degrees.pipeline_stage:
        raise ConfigError(
            f"pipeline_stage places this model in a part of the pipeline ({config.pipeline_stage}), and a plan needs "
            f"all {degrees.pipeline_stage} stages to hold it"
        )
    return Layout(
        data=degrees.data_parallel,
        model=degrees.model_parallel,
        pipeline=degrees.pipeline_stage,
        context=degrees.context_parallel,
        expert=degrees.expert_parallel,
        expert_model=_experts_cut(config, config.moe_config.expert_model_parallel or degrees.model_parallel),
        sharded=settings.shard_optimizer,
        whole_gradients=settings.whole_gradients,
        sequence_parallel=degrees.use_seq_parallel,
        micro_batches=degrees.micro_batch_num if degrees.pipeline_stage > 1 else None,
        stage_layers=tuple(sum(virtual) for virtual in zip(*settings.stage_layers, strict=True)),
    )


def _experts_cut(config: LlamaConfig, asked: int) -> int:
    """Into how many the matrices of one expert are cut: whole where expert parallelism takes the model's ranks too."""
    degrees = config.parallel_config
    fits = (degrees.data_parallel * degrees.context_parallel) % degrees.expert_parallel == 0
    return asked if config.has_experts and fits else 1


def _recompute(config: LlamaConfig) -> bool | tuple[int, ...]:
    """What `recompute` says: all layers, none, or how many leading ones of each stage.

    Recomputing single operations (`select_recompute`) is planned as keeping them: an upper bound.
    """
    rule, stages = config.training.recompute.recompute, config.parallel_config.pipeline_stage
    if isinstance(rule, bool):
        return rule
    rows: list[Any] = [row for row in rule if isinstance(row, list)] or [rule]
    if any(len(row) != stages for row in rows):
        raise ConfigError(f"recompute ({rule}) must state a number for each pipeline_stage ({stages})")
    return tuple(sum(column) for column in zip(*rows, strict=True))


def _feed_forward(config: LlamaConfig, times: int = 1) -> FeedForward:
    """The config's feed-forward, `times` as wide."""
    return FeedForward(config.hidden_size, times * config.intermediate_size)


def _experts(config: LlamaConfig) -> ExpertFeedForward:
    moe, dim = config.moe_config, config.hidden_size
    shared = _feed_forward(config, moe.shared_expert_num) if moe.shared_expert_num else None
    return ExpertFeedForward(
        experts=moe.expert_num,
        chosen=moe.num_experts_chosen,
        expert=_feed_forward(config),
        router=Linear(dim, moe.expert_num),
        shared=shared,
        shared_gate=Linear(dim, 1) if shared and moe.use_shared_expert_gating else None,
    )

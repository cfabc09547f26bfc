"""What a config itself says about types, layout and attention, as the planner's own terms; it reckons nothing."""

from dataclasses import replace
from typing import Any

from modelwright.configs import CheckedConfig
from modelwright.configs.engine import QuantSettings, read_quantization
from modelwright.errors import ConfigError, RequestError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.counts import Counts
from modelwright.planner.layout import Layout, check_layout
from modelwright.planner.precision import Precision, Quant, float_type, kv_type, quantization


def precision_of(config: CheckedConfig, dtype: str | None, kv_dtype: str | None, quant: str | None) -> Precision:
    """The types of a plan: as asked for, else the config's, else float32.

    A config's `quant_config` says what is quantized, and how where `quant` says what. A Llama in MindFormers' dialect
    stores its norms in `layernorm_compute_type` whatever is asked for; it computes and caches in `compute_dtype`.

    Raises:
        RequestError: an option names no type.
    """
    asked = None if dtype is None else float_type(dtype, "--dtype")
    cached = None if kv_dtype is None else kv_type(kv_dtype, "--kv-dtype")
    method = None if quant is None else quantization(quant, "--quant")
    stored = read_quantization(getattr(config, "quant_config", None)) or QuantSettings()
    method, cached = method or _known_quant(stored.weights), cached or stored.kv_cache
    if not isinstance(config, LlamaConfig):
        stated = config.dtype or config.get_text_config().dtype or "float32"
        plain = Precision.uniform(asked or float_type(str(stated), "dtype"), cached, method)
        return replace(plain, group=stored.group, head=stored.head)
    compute = asked or config.compute_dtype
    return Precision(
        weights=asked or config.param_init_type,
        embedding=asked or config.embedding_dtype,
        norms=asked if asked and config.norm_init_type else config.norm_dtype,
        compute=compute,
        kv=cached or compute,
        quant=method,
        group=stored.group,
        head=stored.head,
    )


def layout_of(config: CheckedConfig, counts: Counts) -> Layout | None:
    """The layout that a Llama's `parallel_config` asks for; None where it asks for one device.

    Raises:
        ConfigError: it does not divide the model.
    """
    if not isinstance(config, LlamaConfig) or config.parallel_config.devices == 1:
        return None
    degrees, settings = config.parallel_config, config.parallel
    if settings.first_stage or sum(map(len, settings.stage_layers)) % degrees.pipeline_stage:
        raise ConfigError(
            f"pipeline_stage places this model in a part of the pipeline ({config.pipeline_stage}), and a plan needs "
            f"all {degrees.pipeline_stage} stages to hold it"
        )
    experts = config.moe_config.expert_model_parallel or degrees.model_parallel
    layout = Layout(
        data=degrees.data_parallel,
        model=degrees.model_parallel,
        pipeline=degrees.pipeline_stage,
        context=degrees.context_parallel,
        expert=degrees.expert_parallel,
        expert_model=_experts_cut(config, experts),
        sharded=settings.shard_optimizer,
        sequence_parallel=degrees.use_seq_parallel,
        micro_batches=degrees.micro_batch_num if degrees.pipeline_stage > 1 else None,
        stage_layers=tuple(sum(virtual) for virtual in zip(*settings.stage_layers, strict=True)),
    )
    check_layout(counts, layout)
    return layout


def _experts_cut(config: LlamaConfig, asked: int) -> int:
    """Into how many the matrices of one expert are cut: whole where expert parallelism takes the model's ranks too."""
    degrees = config.parallel_config
    fits = (degrees.data_parallel * degrees.context_parallel) % degrees.expert_parallel == 0
    return asked if config.has_experts and fits else 1


def expert_degree_of(config: CheckedConfig) -> int | None:
    """The expert parallelism that a DeepSeek config states; None where it states none."""
    text = config.get_text_config()
    if isinstance(text, DeepseekV2Config) and text.ep_size > 1:
        return text.ep_size
    return None


def explicit_attention(config: CheckedConfig, attention: str | None) -> bool:
    """Whether scores are written out: `eager` as asked, else where a Llama's `use_flash_attention` is off.

    Raises:
        RequestError: `attention` is neither `fused` nor `eager`.
    """
    if attention not in (None, "fused", "eager"):
        raise RequestError(f"--attention must be fused or eager, got {attention!r}")
    if attention is None:
        return isinstance(config, LlamaConfig) and not config.use_flash_attention
    return attention == "eager"


def recomputed_layers(config: CheckedConfig) -> bool | tuple[int, ...]:
    """What a Llama's `recompute` says: all layers, none, or how many leading ones of each stage.

    Recomputing single operations (`select_recompute`) is planned as keeping them: an upper bound.
    """
    if not isinstance(config, LlamaConfig):
        return False
    rule, stages = config.training.recompute.recompute, config.parallel_config.pipeline_stage
    if isinstance(rule, bool):
        return rule
    rows: list[Any] = [row for row in rule if isinstance(row, list)] or [rule]
    if any(len(row) != stages for row in rows):
        raise ConfigError(f"recompute ({rule}) must state a number for each pipeline_stage ({stages})")
    return tuple(sum(column) for column in zip(*rows, strict=True))


def _known_quant(name: str | None) -> Quant | None:
    return None if name is None else quantization(name, "quant_config")

"""A Llama's run settings as the views that engines, samplers and trainers read; it checks no rule of its own."""

from collections.abc import Iterator
from typing import Any

from modelwright.configs.engine import EngineSettings, read_quantization
from modelwright.configs.parallel import ParallelConfig, ParallelSettings, read_pipeline_stage, stage_layers
from modelwright.configs.run.mindformers import translate
from modelwright.configs.sampling import SamplingSettings
from modelwright.configs.training import OF_SEVERAL_RANKS, TrainingSettings
from modelwright.families.llama.config.fields import LlamaFields
from modelwright.families.llama.config.names import HUGGING_FACE, MINDFORMERS
from modelwright.families.llama.config.widths import feed_forward_width


def engine_settings(config: LlamaFields) -> EngineSettings:
    """How a serving engine runs this model."""
    return EngineSettings(
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        max_decode_length=config.max_decode_length,
        use_past=config.use_past,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        is_dynamic=config.is_dynamic,
        chunk_prefill=config.chunk_prefill,
        backend=config.llm_backend,
        quantization=read_quantization(config.quant_config),
    )


def sampling_settings(config: LlamaFields) -> SamplingSettings:
    """How the next token is chosen by default."""
    return SamplingSettings(
        do_sample=config.do_sample,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        max_decode_length=config.max_decode_length,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
    )


def parallel_settings(config: LlamaFields) -> ParallelSettings:
    """How this model is laid out over devices."""
    degrees, first, offset = config.parallel_config, 0, config.offset
    stages = degrees.pipeline_stage
    if config.pipeline_stage is not None:
        first, stages, offset = read_pipeline_stage(config.pipeline_stage, stages)
    return ParallelSettings(
        config=degrees,
        stage_layers=stage_layers(config.num_hidden_layers, stages, config.pp_interleave_num, offset),
        first_stage=first,
        shard_optimizer=config.shards_optimizer,
        whole_gradients=config.keeps_whole_gradients,
        ring=config.use_ring_attention,
        token_chunks=config.fine_grain_interleave,
    )


def padding_by_id(config: LlamaFields) -> int | None:
    """The token that is padding wherever it stands."""
    return config.pad_token_id if config.dialect == MINDFORMERS else None


def training_settings(config: LlamaFields) -> TrainingSettings:
    """How a trainer feeds this model and weighs its loss."""
    return TrainingSettings(
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        ignore_token_id=config.ignore_token_id,
        pad_token_id=padding_by_id(config),
        input_sliced_sig=config.input_sliced_sig,
        per_token_loss=config.calculate_per_token_loss,
        micro_batches=config.parallel_config.micro_batch_num,
        recompute=config.parallel_config.recompute,
        swap=config.parallel_config.swap,
    )


RUN_FIELDS = (
    "batch_size",
    "calculate_per_token_loss",
    "fine_grain_interleave",
    "offset",
    "parallel_optimizer",
    "pipeline_stage",
    "pp_interleave_num",
    "seq_length",
    "use_ring_attention",
)
"""The fields of a Llama that say how it is trained, beside its `parallel_config`."""
RUN_SECTIONS = ("batch", "data.seq_length", "loss.per_token", "parallel", "recompute", "swap")
"""The keys of a run that they become."""


def run_values(config: LlamaFields, default: LlamaFields) -> dict[str, Any]:
    """What a config states of a run beyond a `default` one: keys of a `RunConfig` by path, with their values.

    What follows from the model's own sizes is not stated: a length of rows that is the number of positions where the
    dialect takes that one, and layers of a group that are fewer because the model has fewer.
    """
    stated, taken = _as_run(config, config.num_hidden_layers), _as_run(default, config.num_hidden_layers)
    if config.dialect == HUGGING_FACE:
        taken["data.seq_length"] = config.max_position_embeddings
    return {path: value for path, value in stated.items() if value != taken.get(path)}


def _as_run(config: LlamaFields, layers: int) -> dict[str, Any]:
    """The keys of a run that the fields of a config give, all of them, for a model of so many layers."""
    model = {name: getattr(config, name) for name in RUN_FIELDS}
    model |= {"num_layers": layers, "parallel_config": config.parallel_config.to_dict()}
    runner = {"gradient_accumulation_steps": config.gradient_accumulation_steps}
    run = {
        "model": {"model_config": model},
        "calculate_per_token_loss": config.calculate_per_token_loss,
        "runner_config": runner,
        "parallel": {
            "enable_parallel_optimizer": config.enable_parallel_optimizer,
            "parallel_optimizer_config": {"gradient_accumulation_shard": config.gradient_accumulation_shard},
        },
    }
    values = translate(run).paths
    return {
        path: value
        for path, value in values.items()
        if any(path == section or path.startswith(f"{section}.") for section in RUN_SECTIONS)
    }


def idle_fields(config: LlamaFields) -> dict[str, str]:
    """The fields that nothing reads with the config's other values, each with the reason."""
    parts = {"parallel_config": config.parallel_config, "moe_config": config.moe_config}
    idle = {f"{part}.{name}": why for part, of in parts.items() for name, why in of.idle().items()}
    idle |= {name: f"several ranks read it, and one trains: {what}" for name, what in OF_SEVERAL_RANKS.items()}
    if config.qkv_concat and config.parallel_config.model_parallel > 1:
        del idle["fine_grain_interleave"]  # it says how MindFormers lays the fused weights out
    return idle | dict(_idle_in_the_model(config)) | dict(_idle_in_a_layout(config)) | dict(_idle_in_serving(config))


def _idle_in_the_model(config: LlamaFields) -> Iterator[tuple[str, str]]:
    width = config.intermediate_size
    if width != feed_forward_width(config.hidden_size, config.multiple_of, config.ffn_dim_multiplier):
        yield from dict.fromkeys(("multiple_of", "ffn_dim_multiplier"), f"intermediate_size is {width}").items()
    if config.use_flash_attention:
        yield "softmax_compute_type", "use_flash_attention is on: the kernel chooses how it takes softmax"
    if config.extend_method in ("PI", "NTK") and config.scaling_factor == 1:
        yield "extend_method", "scaling_factor is 1: nothing is stretched"
    if config.extend_method != "DYNAMIC_NTK":
        yield "is_dynamic", "every length is served as it is, and none rounded up"


def _idle_in_a_layout(config: LlamaFields) -> Iterator[tuple[str, str]]:
    degrees = config.parallel_config
    switches = ("parallel_optimizer", "enable_parallel_optimizer")
    if degrees.devices == 1:
        yield from dict.fromkeys(
            switches, "parallel_config asks for one device: there is nothing to shard over"
        ).items()
    elif config.enable_parallel_optimizer is not None:
        yield "parallel_optimizer", "the run's enable_parallel_optimizer decides"
        if not (config.enable_parallel_optimizer or config.parallel_optimizer):
            yield "enable_parallel_optimizer", "nothing is sharded without it either"
    yield from _idle_in_accumulation(config)
    yield from _idle_in_activations(degrees)
    if degrees.model_parallel == 1:
        yield "parallel_config.use_seq_parallel", "model_parallel is 1"
        yield "moe_config.expert_model_parallel", "model_parallel is 1"
    if config.pipeline_stage is not None:
        yield "offset", "pipeline_stage states its own"


def _idle_in_accumulation(config: LlamaFields) -> Iterator[tuple[str, str]]:
    """Gradients are whole or sharded where several micro-batches add to them on sharded ranks, and nowhere else."""
    degrees, shard, steps = (
        config.parallel_config,
        config.gradient_accumulation_shard,
        config.gradient_accumulation_steps,
    )
    if degrees.pipeline_stage > 1:
        yield "gradient_accumulation_steps", "pipeline_stage is above 1: micro_batch_num counts instead"
    else:
        yield "parallel_config.micro_batch_num", "pipeline_stage is 1: there are no stages to fill"
    several = degrees.micro_batch_num > 1 if degrees.pipeline_stage > 1 else steps > 1
    if degrees.devices == 1 or not config.shards_optimizer or not several:
        yield "gradient_accumulation_shard", "no sharded gradients are summed over micro-batches"
    elif shard:
        yield "gradient_accumulation_shard", "sharded gradients stay sharded unless it says otherwise"


def _idle_in_activations(degrees: ParallelConfig) -> Iterator[tuple[str, str]]:
    """What selects activations to compute again or to move, where nothing or everything is."""
    recompute = degrees.recompute
    if recompute.recompute is True:
        yield "parallel_config.recompute.select_recompute", "recompute is on for all layers"
    if recompute.recompute is True or not recompute.select_recompute:
        yield "parallel_config.recompute.select_recompute_exclude", "select_recompute selects nothing to exclude from"
    if not degrees.swap.swap:
        yield "parallel_config.swap.default_prefetch", "swap is off: nothing comes back"


def _idle_in_serving(config: LlamaFields) -> Iterator[tuple[str, str]]:
    if config.use_past:
        return
    reason = "use_past is off: the engine takes its own defaults"
    yield from dict.fromkeys(("block_size", "num_blocks", "llm_backend", "max_decode_length"), reason).items()

"""A Llama's run settings as the views that engines, samplers and trainers read; it checks no rule of its own."""

from modelwright.configs.engine import EngineSettings, read_quantization
from modelwright.configs.parallel import ParallelSettings, read_pipeline_stage, stage_layers
from modelwright.configs.sampling import SamplingSettings
from modelwright.configs.training import TrainingSettings
from modelwright.families.llama.config.fields import LlamaFields


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
        shard_optimizer=config.parallel_optimizer,
        ring=config.use_ring_attention,
        token_chunks=config.fine_grain_interleave,
    )


def training_settings(config: LlamaFields) -> TrainingSettings:
    """How a trainer feeds this model and weighs its loss."""
    return TrainingSettings(
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        ignore_token_id=config.ignore_token_id,
        pad_token_id=config.pad_token_id,
        input_sliced_sig=config.input_sliced_sig,
        per_token_loss=config.calculate_per_token_loss,
        micro_batches=config.parallel_config.micro_batch_num,
        recompute=config.parallel_config.recompute,
        swap=config.parallel_config.swap,
    )


def fields_without_effect(config: LlamaFields) -> list[str]:
    """The fields set away from their defaults that change nothing on torch, with the config's other values."""
    degrees, experts = config.parallel_config, config.moe_config
    idle = (name for name in experts.changed() if name in experts.WITHOUT_EFFECT or not config.has_experts)
    names = [f"parallel_config.{name}" for name in degrees.changed() if name in degrees.WITHOUT_EFFECT]
    names += [f"moe_config.{name}" for name in idle]
    if config.fine_grain_interleave > 1 and degrees.model_parallel == 1:
        names.append("fine_grain_interleave")
    if config.pp_interleave_num > 1 and degrees.pipeline_stage == 1:
        names.append("pp_interleave_num")
    return names

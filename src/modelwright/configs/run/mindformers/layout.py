"""How a MindFormers run is spread over ranks: its degrees, and how each of them works."""

import math
from collections.abc import Mapping
from typing import Any

from modelwright.configs.parallel import ParallelConfig, read_pipeline_stage, stage_layers
from modelwright.configs.run.mindformers.reader import Reader

DEGREES = ("data_parallel", "model_parallel", "context_parallel", "pipeline_stage", "expert_parallel")
CONTEXT = {"colossalai_cp": "gather", "ulysses_cp": "ulysses", "hybrid_cp": "hybrid"}
ALONE = ("STAND_ALONE", "DATA_PARALLEL", "0", "stand_alone", "data_parallel")
SEQUENCE_PIECES = ("seqpipe", "seqvpp", "seqsmartvpp")


def read_layout(reader: Reader, model: Mapping[str, Any]) -> None:
    """`use_parallel`, `parallel` and `parallel_config`, and the fields of the model that say how it is spread.

    The batch of a step is reckoned as MindFormers does: rows of a pass, times data ranks, times the micro-batches of a
    pipeline, times those that are interleaved, times those whose gradients are summed.
    """
    degrees = ParallelConfig.read_file(model.get("parallel_config"), "parallel_config")
    layers = int(model.get("num_layers", model.get("num_hidden_layers", 32)))
    _refuse_unparallel(reader, degrees)
    _read_batch(reader, degrees, model)
    _read_sharding(reader, degrees, model)
    _read_pipeline(reader, degrees, model, layers)
    ring = bool(model.get("use_ring_attention"))
    reader.put("parallel.model", degrees.model_parallel)
    reader.put("parallel.sequence", degrees.use_seq_parallel)
    reader.put("parallel.context", degrees.context_parallel)
    reader.put("parallel.context_how", "ring" if ring else CONTEXT[degrees.context_parallel_algo])
    reader.put("parallel.ulysses", degrees.ulysses_degree)
    reader.put("parallel.expert", degrees.expert_parallel)
    experts = model.get("moe_config") or {}
    reader.put("parallel.expert_model", experts.get("expert_model_parallel") or 1)
    reader.put("parallel.vocabulary", not degrees.vocab_emb_dp or degrees.pipeline_stage > 1)
    reader.put("parallel.layers_per_group", math.ceil(layers / degrees.gradient_aggregation_group))
    reader.put("parallel.reshard", degrees.recompute.parallel_optimizer_comm_recompute)
    reader.put("parallel.token_chunks", model.get("fine_grain_interleave") or 1)
    number = experts.get("expert_num") or 1
    if number > 1 and degrees.model_parallel > 1 and not degrees.use_seq_parallel:
        reader.refuse(
            f"model_parallel ({degrees.model_parallel}) with expert_num ({number}) needs use_seq_parallel: True, got "
            "False",
            "parallel.sequence",
            "parallel.model",
        )


def _refuse_unparallel(reader: Reader, degrees: ParallelConfig) -> None:
    """R2: degrees that a run without parallelism would silently reset, and that data parallelism alone has not."""
    parallel = str(reader.get("use_parallel", bool | str, True)).lower() not in ("false", "flase")
    mode = reader.get("parallel.parallel_mode", int | str, 1)
    alone = str(mode) in ALONE
    for name in DEGREES:
        degree = getattr(degrees, name)
        allowed = parallel and (not alone or (name == "data_parallel" and "STAND" not in str(mode).upper()))
        if degree > 1 and not allowed:
            key = f"parallel.{name.removesuffix('_parallel').removesuffix('_stage')}"
            keys = ("parallel.data", "parallel.shard") if name == "data_parallel" else (key,)
            reader.refuse(
                f"{name} ({degree}) needs use_parallel: True and parallel_mode 1, got {parallel} and {mode}", *keys
            )


def _read_batch(reader: Reader, degrees: ParallelConfig, model: Mapping[str, Any]) -> None:
    micro = reader.get("runner_config.mini_batch_size", int) or model.get("batch_size") or 1
    reader.get("runner_config.batch_size", int)
    sums = reader.get("runner_config.gradient_accumulation_steps", int, 1)
    interleaved = reader.get("micro_batch_interleave_num", int, 1)
    staged = degrees.pipeline_stage > 1
    if staged and sums > 1:
        reader.idle["runner_config.gradient_accumulation_steps"] = (
            f"pipeline_stage ({degrees.pipeline_stage}) is above 1: micro_batch_num counts instead"
        )
        sums = 1
    passes = degrees.micro_batch_num if staged else 1
    reader.put("batch.micro", micro)
    reader.put("batch.global", micro * degrees.data_parallel * passes * interleaved * sums)
    reader.put("parallel.micro_batches", passes * interleaved if staged else None)


def _read_sharding(reader: Reader, degrees: ParallelConfig, model: Mapping[str, Any]) -> None:
    """Who shares out weights and moments: all data ranks, groups of them, or none."""
    switch = reader.get("parallel.enable_parallel_optimizer", bool)
    shards = bool(model.get("parallel_optimizer")) if switch is None else switch
    inside = "parallel.parallel_optimizer_config"
    size = reader.get(f"{inside}.optimizer_weight_shard_size", int, -1)
    group = degrees.data_parallel if size in (-1, 0) else min(size, degrees.data_parallel)
    reader.put("parallel.shard", group if shards else 1)
    reader.put("parallel.data", degrees.data_parallel // group if shards else degrees.data_parallel)
    reader.put("parallel.shard_embedding", bool(model.get("parallel_optimizer")) if switch else True)
    sharded = reader.get(f"{inside}.gradient_accumulation_shard", bool, False)
    reader.put("parallel.shard_gradients", sharded)
    if not shards:
        for key in ("optimizer_weight_shard_size", "gradient_accumulation_shard"):
            if reader.has(f"{inside}.{key}"):
                reader.idle[f"{inside}.{key}"] = "enable_parallel_optimizer is off: nothing is sharded"


def _read_pipeline(reader: Reader, degrees: ParallelConfig, model: Mapping[str, Any], layers: int) -> None:
    virtual = model.get("pp_interleave_num") or 1
    interleaves = reader.get("parallel.pipeline_config.pipeline_interleave", bool, False)
    schedule = reader.get("parallel.pipeline_config.pipeline_scheduler", str, "1f1b")
    stages, pieces, batches = degrees.pipeline_stage, degrees.seq_split_num, degrees.micro_batch_num
    if virtual > 1 and not interleaves:
        reader.refuse(
            f"pp_interleave_num ({virtual}) needs parallel.pipeline_config.pipeline_interleave: True, got False",
            "parallel.virtual",
        )
    if pieces > 1 or schedule in SEQUENCE_PIECES:
        reader.refuse(
            f"seq_split_num ({pieces}) sends pieces of one sequence through the pipeline, for which torch has no "
            f"schedule: set it to 1 and micro_batch_num to {batches * pieces}"
            + (f', and pipeline_scheduler ("{schedule}") to 1f1b' if schedule in SEQUENCE_PIECES else ""),
            "parallel.schedule",
        )
    elif schedule not in ("1f1b", "gpipe"):
        reader.refuse(f'parallel.pipeline_config.type "{schedule}" is not one of 1f1b, gpipe', "parallel.schedule")
    reader.put("parallel.pipeline", stages)
    reader.put("parallel.virtual", virtual)
    reader.put("parallel.schedule", "gpipe" if schedule == "gpipe" else "interleaved" if virtual > 1 else "1f1b")
    reader.put("parallel.stage_layers", None)
    if stages > 1:
        own = model.get("pipeline_stage")
        offset = model.get("offset") or 0
        if isinstance(own, Mapping):
            _, stages, offset = read_pipeline_stage(own, stages)
        table = stage_layers(layers, stages, virtual, offset)
        reader.put("parallel.stage_layers", [count for row in table for count in row])

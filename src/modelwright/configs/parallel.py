"""How a model is split over devices: MindFormers' `parallel_config`, and the view of it; it holds no mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from modelwright.configs.base import require, require_divides, require_one_of
from modelwright.configs.file_part import FilePart
from modelwright.errors import ConfigError

CONTEXT_ALGORITHMS = ("colossalai_cp", "ulysses_cp", "hybrid_cp")

PerStage = bool | list[int] | list[list[int]]
"""True or False for every layer, or how many leading layers of each stage: `[pp]`, or `[virtual stages][pp]`."""
Selection = bool | list[int] | list[list[int]] | list[str] | dict[str, Any]
"""`PerStage`, or patterns of operation names: a list, or one `PerStage` for each pattern."""


@dataclass(frozen=True)
class RecomputeConfig(FilePart):
    """Which activations are computed again in the backward pass instead of kept.

    `recompute` names whole layers, `select_recompute` single operations, `select_comm_recompute` communication; the
    `_exclude` fields win. `parallel_optimizer_comm_recompute` gathers sharded weights again, `mp_comm_recompute`
    repeats the tensor-parallel communication inside recomputed layers, and `recompute_slice_activation` shards what a
    recomputed layer keeps.
    """

    SHORT: ClassVar[str | None] = "recompute"

    recompute: PerStage = False
    select_recompute: Selection = False
    select_comm_recompute: Selection = False
    select_recompute_exclude: Selection = False
    select_comm_recompute_exclude: Selection = False
    parallel_optimizer_comm_recompute: bool = False
    mp_comm_recompute: bool = True
    recompute_slice_activation: bool = False


@dataclass(frozen=True)
class SwapConfig(FilePart):
    """Activations moved to the host between forward and backward: whole layers, or operations by pattern."""

    SHORT: ClassVar[str | None] = "swap"

    swap: bool = False
    default_prefetch: int = 1
    layer_swap: list[Any] | dict[str, Any] | None = None
    op_swap: list[Any] | dict[str, Any] | None = None

    def check_rules(self) -> None:
        self.require_at_least(1, "default_prefetch")
        for name in ("layer_swap", "op_swap"):
            given = getattr(self, name)
            require(self.swap or not given, f"{name} ({given}) needs swap=True, got swap=False")


@dataclass(frozen=True)
class ParallelConfig(FilePart):
    """MindFormers' `parallel_config`: the degrees whose product is the number of devices, and how each works.

    `recompute` may also be a bool, a list or a dict of MindFormers' rules, and `swap` a bool or a dict.
    """

    PARTS: ClassVar[Mapping[str, type[FilePart]]] = MappingProxyType({"recompute": RecomputeConfig, "swap": SwapConfig})
    IDLE: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "mem_coeff": "a weight in MindFormers' own planner of layouts",
            "optimizer_shard": "a switch that MindFormers itself has retired for parallel_optimizer",
        }
    )

    data_parallel: int = 1
    model_parallel: int = 1
    context_parallel: int = 1
    context_parallel_algo: str = "colossalai_cp"
    ulysses_degree_in_cp: int = 1
    expert_parallel: int = 1
    pipeline_stage: int = 1
    micro_batch_num: int = 1
    seq_split_num: int = 1
    use_seq_parallel: bool = False
    vocab_emb_dp: bool = True
    gradient_aggregation_group: int = 4
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    swap: SwapConfig = field(default_factory=SwapConfig)
    mem_coeff: float = 0.1
    optimizer_shard: bool | None = None

    @property
    def devices(self) -> int:
        """How many devices the degrees ask for; expert parallelism is carved out of the others."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage * self.context_parallel

    def check_rules(self) -> None:
        self.require_at_least(1, "data_parallel", "model_parallel", "context_parallel", "ulysses_degree_in_cp")
        self.require_at_least(1, "expert_parallel", "pipeline_stage", "micro_batch_num", "seq_split_num")
        self.require_at_least(1, "gradient_aggregation_group")
        require_one_of("context_parallel_algo", self.context_parallel_algo, CONTEXT_ALGORITHMS)
        context, ulysses, algorithm = self.context_parallel, self.ulysses_degree_in_cp, self.context_parallel_algo
        require_divides("ulysses_degree_in_cp", ulysses, "context_parallel", context)
        require(
            ulysses == 1 or algorithm == "hybrid_cp",
            f'ulysses_degree_in_cp ({ulysses}) needs context_parallel_algo "hybrid_cp", got "{algorithm}"',
        )
        stages, batches = self.pipeline_stage, self.micro_batch_num
        require(
            stages == 1 or batches >= stages,
            f"micro_batch_num ({batches}) must be at least pipeline_stage ({stages})",
        )
        data, experts = self.data_parallel * self.context_parallel * self.model_parallel, self.expert_parallel
        require(
            data % experts == 0,
            f"data_parallel x context_parallel x model_parallel ({data}) must be divisible by expert_parallel "
            f"({experts})",
        )

    @property
    def ulysses_degree(self) -> int:
        """By how many ranks the heads are split while attending: 1 unless an all-to-all algorithm is chosen."""
        if self.context_parallel_algo == "ulysses_cp":
            return self.context_parallel
        return self.ulysses_degree_in_cp


@dataclass(frozen=True)
class ParallelSettings:
    """A model's layout over devices, resolved.

    Attributes:
        config: the degrees.
        stage_layers: layers of each stage, `[virtual stages][stages]`; layers run in the order of this table's rows.
        first_stage: the pipeline stage that holds this model's first layers (0 unless `pipeline_stage` places it).
        shard_optimizer: parameters and optimizer states are sharded over the data-parallel ranks.
        whole_gradients: each rank sums whole gradients over the micro-batches of a step, though all else is sharded.
        ring: keys and values travel round a ring of the context-parallel ranks instead of being gathered.
        token_chunks: in how many chunks the tokens go through a layer, so that communication overlaps computation.
    """

    config: ParallelConfig
    stage_layers: tuple[tuple[int, ...], ...]
    first_stage: int = 0
    shard_optimizer: bool = False
    whole_gradients: bool = False
    ring: bool = False
    token_chunks: int = 1


def stage_layers(layers: int, stages: int, virtual: int, offset: int | list[Any]) -> tuple[tuple[int, ...], ...]:
    """How many layers each stage holds, `[virtual][stages]`: `layers // (stages x virtual) + offset`.

    Args:
        offset: one number for all, a list of `stages`, or `virtual` lists of `stages`; broadcast to the table.

    Raises:
        ConfigError: the shape does not fit, a stage is left empty, or the counts do not add up to `layers`.
    """
    require(
        stages * virtual <= layers,
        f"pipeline_stage ({stages}) x pp_interleave_num ({virtual}) must not exceed the layers ({layers})",
    )
    share = layers // (stages * virtual)
    counts = tuple(tuple(share + extra for extra in row) for row in _broadcast(offset, stages, virtual))
    flat = [count for row in counts for count in row]
    require(min(flat) >= 1, f"offset ({offset}) leaves a stage without layers: {_shown(counts)} of {layers} layers")
    require(
        sum(flat) == layers,
        f"offset ({offset}) gives the stages {_shown(counts)} layers, {sum(flat)} together, and there are {layers}",
    )
    return counts


def _broadcast(offset: int | list[Any], stages: int, virtual: int) -> list[list[int]]:
    if isinstance(offset, int):
        return [[offset] * stages] * virtual
    rows = offset if isinstance(offset, list) and offset and isinstance(offset[0], list) else [offset] * virtual
    holds = len(rows) == virtual and all(
        isinstance(row, list) and len(row) == stages and all(isinstance(extra, int) for extra in row) for row in rows
    )
    require(
        holds,
        f"offset must be an int, a list of pipeline_stage ({stages}) ints, or pp_interleave_num ({virtual}) such "
        f"lists; got {offset}",
    )
    return rows


def _shown(counts: tuple[tuple[int, ...], ...]) -> str:
    rows = [list(row) for row in counts]
    return str(rows[0] if len(rows) == 1 else rows)


def read_pipeline_stage(values: Mapping[str, Any], stages: int) -> tuple[int, int, int | list[Any]]:
    """The `start_stage`, `stage_num` and `offset` of a model that occupies a part of the pipeline.

    Raises:
        ConfigError: a key is missing or unknown, or the part goes beyond the `stages` there are.
    """
    keys = ("start_stage", "stage_num", "offset")
    missing = [key for key in keys if key not in values]
    require(not missing, f"pipeline_stage needs {', '.join(keys)}; {', '.join(missing)} is missing")
    unknown = [key for key in values if key not in keys]
    require(not unknown, f"pipeline_stage takes {', '.join(keys)}; got {', '.join(map(str, unknown))}")
    start, count, offset = (values[key] for key in keys)
    for name, value, least in (("start_stage", start, 0), ("stage_num", count, 1)):
        holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(holds, f"pipeline_stage {name} must be an int of at least {least}, got {value!r}")
    if start + count > stages:
        raise ConfigError(
            f"pipeline_stage start_stage ({start}) + stage_num ({count}) must not exceed the pipeline_stage of "
            f"parallel_config ({stages})"
        )
    return start, count, offset

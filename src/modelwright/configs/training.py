"""What a trainer reads from a config: lengths, labels, the loss and what is recomputed; no loop lives here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from modelwright.configs.parallel import RecomputeConfig, SwapConfig
from modelwright.configs.part import ConfigPart

OF_SEVERAL_RANKS: Mapping[str, str] = MappingProxyType(
    {
        "use_ring_attention": "keys and values travel round a ring instead of being gathered",
        "fine_grain_interleave": "chunks of tokens whose communication overlaps computation",
        "pp_interleave_num": "virtual stages of each rank",
        "parallel_config.context_parallel_algo": "how the context is split",
        "parallel_config.ulysses_degree_in_cp": "over how many ranks heads are split while attending",
        "parallel_config.seq_split_num": "pieces of a sequence in the pipeline, which only 1 is served of",
        "parallel_config.vocab_emb_dp": "whether embedding and head are whole on each rank",
        "parallel_config.gradient_aggregation_group": "how many groups of layers shard together",
        "parallel_config.recompute.select_comm_recompute": "communication repeated",
        "parallel_config.recompute.select_comm_recompute_exclude": "communication kept",
        "parallel_config.recompute.parallel_optimizer_comm_recompute": "sharded weights gathered again",
        "parallel_config.recompute.mp_comm_recompute": "communication inside recomputed layers repeated",
        "parallel_config.recompute.recompute_slice_activation": "what a recomputed layer keeps, sharded",
    }
)
"""The fields of a Llama that say how several ranks train, which the trainer does not do yet, with what each says.

They are listed by `fields_without_effect`; whoever writes their reader takes them out of here.
"""


@dataclass(frozen=True)
class TrainingSettings(ConfigPart):
    """How a model is trained.

    `batch_size` is a micro-batch of one rank and `seq_length` its length in tokens. Rows are `seq_length` + 1 wide and
    shifted inside unless `input_sliced_sig` says that inputs and labels are aligned already. Labels of
    `ignore_token_id`, and those that a `pad_token_id` would have to foresee, do not count. `per_token_loss` weighs
    every counted token alike over micro-batches and ranks; without it every micro-batch does.
    """

    batch_size: int = 1
    seq_length: int = 2048
    ignore_token_id: int = -100
    pad_token_id: int | None = 0
    input_sliced_sig: bool = False
    per_token_loss: bool = False
    micro_batches: int = 1
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    swap: SwapConfig = field(default_factory=SwapConfig)

"""What a trainer reads from a config: lengths, labels, the loss and what is recomputed; no loop lives here."""

from dataclasses import dataclass, field

from modelwright.configs.parallel import RecomputeConfig, SwapConfig
from modelwright.configs.part import ConfigPart


@dataclass(frozen=True)
class TrainingSettings(ConfigPart):
    """How a model is trained.

    `batch_size` is a micro-batch of one rank and `seq_length` its length in tokens. Rows are `seq_length` + 1 wide and
    shifted inside unless `input_sliced_sig` says that inputs and labels are aligned already. Labels of
    `ignore_token_id`, and targets of `pad_token_id`, do not count. `per_token_loss` weighs every counted token alike
    over micro-batches and ranks; without it every micro-batch does.
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

"""A training run as checked parts: our run file and MindFormers', read into one `RunConfig`; no tensor code."""

from modelwright.configs.run.batches import BatchPart, DataPart, SourcePart, longest_row
from modelwright.configs.run.config import RunConfig
from modelwright.configs.run.layout import ParallelPart, RecomputePart, SwapPart
from modelwright.configs.run.learning import LossPart, LossScalePart, OptimizerPart, PrecisionPart, SchedulePart
from modelwright.configs.run.model import LoraPart, ModelPart, TunePart
from modelwright.configs.run.watching import CheckpointPart, EvaluatePart, LimitsPart, LogPart, ProfilePart, SkipPart

__all__ = [
    "BatchPart",
    "CheckpointPart",
    "DataPart",
    "EvaluatePart",
    "LimitsPart",
    "LogPart",
    "LoraPart",
    "LossPart",
    "LossScalePart",
    "ModelPart",
    "OptimizerPart",
    "ParallelPart",
    "PrecisionPart",
    "ProfilePart",
    "RecomputePart",
    "RunConfig",
    "SchedulePart",
    "SkipPart",
    "SourcePart",
    "SwapPart",
    "TunePart",
    "longest_row",
]

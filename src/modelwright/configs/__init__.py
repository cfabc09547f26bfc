"""The checked base of every configuration and the parts that families share; no tensor code lives in this room."""

from modelwright.configs.base import CheckedConfig
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig
from modelwright.configs.rope import RopeScaling, RopeSettings

__all__ = ["CheckedConfig", "MoEConfig", "ParallelConfig", "RopeScaling", "RopeSettings"]

from modelwright.configs.base import CheckedConfig as CheckedConfig
from modelwright.configs.moe import MoEConfig as MoEConfig
from modelwright.configs.parallel import ParallelConfig as ParallelConfig
from modelwright.configs.rope import RopeScaling as RopeScaling
from modelwright.configs.rope import RopeSettings as RopeSettings

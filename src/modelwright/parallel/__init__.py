"""Ranks that share a model: a built one cut down from outside to what one rank keeps; inference only."""

from modelwright.parallel.expert import OwnExperts, expert_rule
from modelwright.parallel.layers import is_sliced
from modelwright.parallel.mesh import Mesh, RankLost, process_group
from modelwright.parallel.tensor import RULES, Rule, slice_head, slice_modules

__all__ = [
    "RULES",
    "Mesh",
    "OwnExperts",
    "RankLost",
    "Rule",
    "expert_rule",
    "is_sliced",
    "process_group",
    "slice_head",
    "slice_modules",
]

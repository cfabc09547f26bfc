"""What a model costs, by arithmetic on its config: nothing is built, read or downloaded, and no tensor code runs."""

from modelwright.planner.counts import Counts
from modelwright.planner.families import count
from modelwright.planner.parts import ByPart

__all__ = ["ByPart", "Counts", "count"]

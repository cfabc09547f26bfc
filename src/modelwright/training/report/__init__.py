"""What a run says of itself: its steps in numbers, a line for people, a plot, and the writers of other programs."""

from modelwright.training.report.protocols import Report, RunFacts, Writer
from modelwright.training.report.run_report import RunReport

__all__ = ["Report", "RunFacts", "RunReport", "Writer"]

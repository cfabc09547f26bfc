"""What a run says of itself: its steps in numbers, a line for people, a plot, and the writers of other programs."""

from modelwright.training.report.protocols import EndLike, Report, RunFacts, StepLike, Writer

__all__ = ["EndLike", "Report", "RunFacts", "StepLike", "Writer"]

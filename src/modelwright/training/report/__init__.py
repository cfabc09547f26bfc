"""What a run says of itself: its steps in numbers, a line for people, a plot, and the writers of other programs."""

from modelwright.training.report.protocols import Report, RunFacts, Writer

__all__ = ["Report", "RunFacts", "Writer"]

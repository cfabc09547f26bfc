"""The report of a run that is to say nothing."""

from collections.abc import Mapping
from typing import Any

from modelwright.training.report import RunFacts
from modelwright.training.results import Ended, StepResult


class Silence:
    """See :class:`modelwright.training.report.Report`."""

    def begin(self, facts: RunFacts) -> None:
        """Nothing."""

    def step(self, result: StepResult, more: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, step: int, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Nothing."""

    def note(self, sentence: str) -> None:
        """Nothing."""

    def end(self, ended: Ended) -> None:
        """Nothing."""

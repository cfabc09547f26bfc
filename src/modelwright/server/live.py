"""The requests that are being answered, and what each is doing: for the status, the log, and counted aborts."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modelwright.engine.streams import Stream
from modelwright.server.access_log import Record
from modelwright.server.usage import Meter

_STAGES = {"picture": "pictures", "preparing": "prepare", "queue": "queue"}
"""Phases that the server sees begin, and what traces call them."""


@dataclass(eq=False)
class Live:
    """One request.

    Attributes:
        record: what the access log says of it, its id and its key's name among that.
        meters: the tokens of its prompts, once they are known.
        streams: its prompts in the engine, once they are submitted.
        entered: when it came to each phase that the server sees begin, as `time.monotonic` counts.
    """

    record: Record
    started: float = field(default_factory=time.monotonic)
    meters: list[Meter] = field(default_factory=list)
    streams: Sequence[Stream] = ()
    entered: dict[str, float] = field(default_factory=dict)

    def enter(self, phase: str) -> None:
        """Come to a phase; to come to one again changes nothing."""
        self.entered.setdefault(phase, time.monotonic())

    @property
    def phase(self) -> str:
        """Where it is: preparing, picture, queue, prefill or decode."""
        phase = next(reversed(self.entered), "preparing")
        return "prefill" if phase == "queue" and any(stream.started for stream in self.streams) else phase

    def status(self) -> dict[str, Any]:
        """What its caller may see: no text."""
        return {
            "id": self.record.request_id,
            "model": self.record.model,
            "phase": self.phase,
            "stream": self.record.stream,
            "age_seconds": round(time.monotonic() - self.started, 3),
            "prompt_tokens": sum(meter.prompt_tokens for meter in self.meters),
            "completion_tokens": sum(meter.completion_tokens for meter in self.meters),
        }

    def note(self) -> None:
        """Let the access log know what the engine told."""
        record, meters = self.record, self.meters
        if not meters:
            return
        record.prompt_tokens = sum(meter.prompt_tokens for meter in meters)
        record.cached_tokens = sum(meter.cached_tokens for meter in meters)
        record.picture_tokens = sum(meter.picture_tokens for meter in meters)
        record.completion_tokens = sum(meter.completion_tokens for meter in meters)
        firsts = [meter.first for meter in meters if meter.first is not None]
        if firsts:
            record.ttft_ms = round(1e3 * (min(firsts) - self.started), 3)
        begun = [meter.scheduled for meter in meters if meter.scheduled is not None]
        if begun:
            record.queue_ms = round(1e3 * (min(begun) - min(meter.started for meter in meters)), 3)
        record.stages = self._stages(min(begun, default=None), min(firsts, default=None))

    def _stages(self, scheduled: float | None, first: float | None) -> dict[str, tuple[float, float]]:
        """What it passed through until now, in milliseconds after it came; a stage ends where the next one begins."""
        met = {name: self.entered.get(phase) for phase, name in _STAGES.items()}
        met |= {"prefill": scheduled, "decode": first}
        begins = [(name, when) for name, when in met.items() if when is not None]
        ends = [when for _, when in begins[1:]] + [time.monotonic()]
        return {
            name: (1e3 * (begin - self.started), 1e3 * (max(end, begin) - self.started))
            for (name, begin), end in zip(begins, ends, strict=True)
        }


class LiveRequests:
    """All of them."""

    def __init__(self) -> None:
        self._live: set[Live] = set()

    def __len__(self) -> int:
        return len(self._live)

    def seen_by(self, key: str | None) -> list[Live]:
        """Those of one key, or of all where that is None; the oldest first."""
        found = [each for each in self._live if key is None or each.record.key == key]
        return sorted(found, key=lambda each: each.started)

    @contextmanager
    def during(self, live: Live) -> Iterator[Live]:
        """Let a request be seen until the block is left."""
        self._live.add(live)
        try:
            yield live
        finally:
            self._live.discard(live)
            live.note()

"""Sources that are lists, and the section ``data`` of a run, for tests of what is done with rows."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from modelwright.data.batches import RunBatches
from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding.learning import Room
from modelwright.data.examples import BrokenRow, Example, Place, Tokens


class Listed:
    """Rows of a list; one that is text is broken, for the reason that it says."""

    format = "listed"

    def __init__(self, rows: Sequence[Any], name: str = "rows", sha256: str = "0" * 64):
        self.rows, self.name, self.sha256 = rows, name, sha256

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Example:
        content, place = self.rows[row], Place(f"{self.name}.jsonl", row + 1)
        if isinstance(content, str):
            raise BrokenRow(place, content)
        return Example(place, content)

    def unread(self) -> list[str]:
        return []

    def fingerprint(self) -> list[dict[str, Any]]:
        return [{"file": f"{self.name}.jsonl", "size": len(self.rows), "sha256": self.sha256}]


def of_lengths(*lengths: int, name: str = "rows") -> Listed:
    """Documents of so many tokens, each of which is its row's number and its place in it: 1000 row + place."""
    return Listed([Tokens(1000 * row + np.arange(length)) for row, length in enumerate(lengths)], name)


class AsGiven:
    """Documents of tokens as they are given."""

    packs, pad_id = True, 999_999

    def __init__(self, part: Any):
        self.room = Room(part.seq_length, part.truncate)

    def __call__(self, example: Example) -> Document:
        ids = example.content.ids  # pyright: ignore[reportAttributeAccessIssue]
        labels = np.where(np.arange(len(ids)) == 0, UNLEARNED, ids)
        return self.room.fitted(Document(ids, labels, example.place))

    outline = __call__


def section(**values: Any) -> Any:
    """The section ``data``."""
    fields = {
        **{"train": (), "eval": (), "root": None, "seq_length": 64, "pack": "documents", "truncate": "refuse"},
        **{"shuffle": True, "labels": "assistant", "workers": 0, "on_error": "stop", "cache": None, "window": 16},
        **{"drop_last": False, "skip": 0},
    }
    assert values.keys() <= fields.keys()
    return SimpleNamespace(**fields | values)


def batches(
    *sources: Any, micro: int = 1, step: int = 2, seed: int = 0, weights: Any = None, encoder: Any = None, **values: Any
) -> RunBatches:
    """The steps of sources; fields of ``data`` by their names."""
    part = section(**values)
    shares = [1.0] * len(sources) if weights is None else weights
    made = AsGiven(part) if encoder is None else encoder
    return RunBatches(sources, shares, made, part, micro, step, seed)

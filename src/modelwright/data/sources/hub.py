"""Data sets by their name on the Hugging Face Hub, through ``datasets`` where it is installed."""

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

from modelwright.data.examples import Place
from modelwright.data.rows import Row
from modelwright.errors import RequestError

SCHEME = "hf://"
_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.\-\[\]:%]+))?")


class HubRows:
    """The rows of ``hf://owner/name``, ``hf://owner/name:config`` or ``hf://owner/name:config@split``.

    The split is ``train`` where none is named. Pictures stay as their files' bytes or paths.

    Raises:
        RequestError: ``datasets`` is not installed, or has no such data set.
    """

    format: str | None = None

    def __init__(self, address: str):
        named = _NAME.fullmatch(address.removeprefix(SCHEME))
        if named is None:
            raise RequestError(f"{address} must be hf://owner/name, hf://owner/name:config or either with @split")
        try:
            datasets: Any = importlib.import_module("datasets")
        except ModuleNotFoundError:
            raise RequestError(
                f"{address} is read by the package datasets, which is not installed: pip install datasets, or download "
                "the files and name them"
            ) from None
        try:
            rows = datasets.load_dataset(named["name"], named["config"], split=named["split"] or "train")
        except Exception as error:  # what the Hub, its client and the files may raise has no common class
            raise RequestError(f"datasets cannot read {address}: {error}") from error
        for name, feature in rows.features.items():
            kept = _undecoded(feature, datasets)
            if kept != feature:
                rows = rows.cast_column(name, kept)
        self._rows, self._address = rows, address
        self.files = tuple(Path(file["filename"]) for file in rows.cache_files)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return Row(Place(self._address, row + 1), self._rows[row])


def _undecoded(feature: Any, datasets: Any) -> Any:
    """A column's type without the decoding of its pictures, in lists too."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return feature if inner is None else dataclasses.replace(feature, feature=_undecoded(inner, datasets))

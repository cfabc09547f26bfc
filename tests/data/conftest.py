"""Files of rows in a temporary folder, opened as a run opens them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelwright.data.examples import BrokenRow, Source
from modelwright.data.sources import open_source


class Folder:
    """A folder of data, in which files are written and opened by name."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, name: str, content: bytes | str | list[Any]) -> Path:
        """Write a file: bytes, text in UTF-8, or a list of rows as JSON Lines."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def open(self, name: str, format: str = "auto", root: str | None = None, cache: Path | None = None) -> Source:
        part = SimpleNamespace(path=name, format=format, name=None)
        return open_source(part, None if root is None else Path(root), self.path, cache)

    def rows(self, content: list[Any], **how: Any) -> Source:
        """The source of rows of JSON Lines."""
        self.write("rows.jsonl", content)
        return self.open("rows.jsonl", **how)

    def content(self, row: Any, **how: Any) -> Any:
        """What one row says."""
        return self.rows([row], **how)[0].content

    def reason(self, row: Any, **how: Any) -> str:
        """Why one row is broken."""
        with pytest.raises(BrokenRow) as caught:
            self.content(row, **how)
        assert str(caught.value).startswith(f"{self.path / 'rows.jsonl'}:1: ")
        return caught.value.reason


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)

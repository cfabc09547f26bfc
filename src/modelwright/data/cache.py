"""Documents that were made once: tokens, labels and lengths in files that are mapped into memory, and found by a key.

A prepared source is a folder. ``tokens.bin`` holds the tokens of all documents one after the other (int32),
``marks.bin`` a byte for each (bit 0: learned, bit 1: a picture's), ``grids.bin`` the grids of pictures (int32 pairs),
``others.bin`` the labels that are not the token itself (pairs of int64: which token, its label), ``rows.bin`` what is
known of each row (`ROW`), and ``manifest.json`` the key, the files and their sizes, why rows are broken, and counts.
Pixels are not kept: of a row that shows pictures the outline is, and its pixels are read from the row when it is due.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from socket import gethostname
from typing import IO, Any, Protocol

import numpy as np

from modelwright.data.documents import UNLEARNED, Document, Encoder
from modelwright.data.encoding.learning import Unlearned
from modelwright.data.examples import BrokenRow, Example, Place, Source
from modelwright.data.identity import identity_of
from modelwright.durable import sync_folder, write_durably
from modelwright.errors import RequestError

VERSION = 1
ROW = np.dtype(
    [("start", "<i8"), ("line", "<i8"), ("file", "<i4"), ("grid", "<i4"), ("reads_last", "?"), ("state", "u1")]
)
"""Of a row: where its tokens begin, its place, its first grid, `Document.reads_last`, and whether it is whole (0),
broken (1) or teaches nothing (2)."""
_WHOLE, _BROKEN, _UNLEARNED = 0, 1, 2
_LEARNED_BIT, _PICTURE_BIT = 1, 2
_FILES = {"tokens.bin": "<i4", "marks.bin": "u1", "grids.bin": "<i4", "others.bin": "<i8", "rows.bin": ROW}
_AHEAD = 64
"""Documents that are asked for ahead."""


class Maker(Protocol):
    """What makes documents, ahead or when they are asked for (`workers.Workers`)."""

    def submit(self, example: Example, outline: bool) -> "Future[Document]": ...


class Prepared:
    """The documents of a source, from the folder that `prepare` wrote.

    Attributes:
        lengths: int64 [rows], the tokens of each row that enter the model; 0 where there is no document.
        manifest: what ``manifest.json`` says.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._tokens, self._marks, grids, others, self._rows = (_mapped(folder, name) for name in _FILES)
        self._grids, self._others = grids.reshape(-1, 2), others.reshape(-1, 2)
        starts = self._rows["start"]
        self._ends = np.append(starts[1:], len(self._tokens))
        self._grid_ends = np.append(self._rows["grid"][1:], len(self._grids))
        self.lengths = self._ends - starts - ((self._ends > starts) & ~self._rows["reads_last"])

    def __len__(self) -> int:
        return len(self._rows)

    def outline(self, row: int) -> Document:
        """A row's document without the pixels of its pictures; whole where it shows none.

        Raises:
            BrokenRow, Unlearned: what making it raised.
        """
        known = self._rows[row]
        place = Place(self.manifest["places"][int(known["file"])], int(known["line"]))
        if known["state"] != _WHOLE:
            kind = Unlearned if known["state"] == _UNLEARNED else BrokenRow
            raise kind(place, self.manifest["broken"][str(row)])
        start, end = int(known["start"]), int(self._ends[row])
        ids, marks = self._tokens[start:end].astype(np.int64), np.asarray(self._marks[start:end])
        labels = np.where(marks & _LEARNED_BIT, ids, UNLEARNED)
        first, last = np.searchsorted(self._others[:, 0], (start, end))
        labels[self._others[first:last, 0] - start] = self._others[first:last, 1]
        grids = tuple((int(w), int(h)) for w, h in self._grids[int(known["grid"]) : int(self._grid_ends[row])])
        mask = (marks & _PICTURE_BIT).astype(bool) if grids else None
        return Document(ids, labels, place, None, grids, mask, bool(known["reads_last"]))


def key_of(source: Source, identity: str) -> str:
    """The key of a source's documents: its files, its format, and what makes documents (`identity.identity_of`)."""
    files = [(entry["size"], entry["sha256"]) for entry in source.fingerprint()]
    facts = json.dumps([VERSION, source.format, len(source), files, identity])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def find_prepared(cache: Path, key: str) -> Prepared | None:
    """The documents of a key, where they were prepared."""
    folder = cache / "prepared" / key
    return Prepared(folder) if folder.is_dir() else None


def prepared_of(source: Source, encoder: Encoder, cache: Path | None) -> Prepared | None:
    """The documents that an encoder makes of a source, where they were prepared."""
    if cache is None or not (cache / "prepared").is_dir():
        return None
    return find_prepared(cache, key_of(source, identity_of(encoder)))


def prepare(
    source: Source,
    maker: Maker,
    cache: Path,
    key: str,
    *,
    skips: bool = False,
    cuts: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Prepared:
    """Make the documents of a source, or find them made.

    They are written into a folder of another name, which gets its own when all of it is on the disk: a folder of a key
    is whole. Two processes may prepare the same; the first to end wins.

    Args:
        source: the rows.
        maker: makes documents.
        cache: ``data.cache``.
        key: of `key_of`.
        skips: whether a broken row is noted; otherwise it is raised. ``data.on_error: skip`` asks for it.
        cuts: whether a row of which nothing is learned is noted as well. ``data.truncate: end`` asks for it.
        progress: told of each row that is made, by its number.

    Raises:
        BrokenRow: a row is broken, and none may be.
    """
    found = find_prepared(cache, key)
    if found is not None:
        return found
    final = cache / "prepared" / key
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(final)
    unfinished = final.with_name(f".{key}.{gethostname()}.{os.getpid()}")
    unfinished.mkdir()
    try:
        _write(unfinished, source, maker, key, skips, cuts, progress)
        sync_folder(unfinished)
        try:
            unfinished.rename(final)
        except OSError:
            if not final.is_dir():  # another process ended first
                raise
        sync_folder(final.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Prepared(final)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``manifest.json`` of a folder says.

    Raises:
        RequestError: it is missing or damaged, or a file has another size than it says.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{folder} is damaged: remove it and prepare the data again ({error})") from error
    for name, size in sizes.items():
        if size != manifest["files"][name]["size"]:
            expected = manifest["files"][name]["size"]
            raise RequestError(f"{folder / name} has {size} bytes and its manifest says {expected}: remove {folder}")
    return manifest


class _Writer:
    """Appends to the files of a folder, and hashes what is written."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self._opened = contextlib.ExitStack()
        self._files: dict[str, IO[bytes]] = {
            name: self._opened.enter_context((folder / name).open("wb")) for name in names
        }
        self._hashes = {name: hashlib.sha256() for name in names}

    def append(self, name: str, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, np.dtype(_FILES[name])).tobytes()
        self._files[name].write(content)
        self._hashes[name].update(content)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Bring all to the disk, and say what there is."""
        described = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            described[name] = {"size": file.tell(), "sha256": self._hashes[name].hexdigest()}
        self._opened.close()
        return described

    def close(self) -> None:
        self._opened.close()


def _write(
    folder: Path,
    source: Source,
    maker: Maker,
    key: str,
    skips: bool,
    cuts: bool,
    progress: Callable[[int], object] | None,
) -> None:
    writer = _Writer(folder, [*_FILES])
    places: dict[str, int] = {}
    broken: dict[int, str] = {}
    tokens = grids = learned = 0
    try:
        for row, made in enumerate(_made(source, maker)):
            document = made if isinstance(made, Document) else None
            state = _WHOLE if document is not None else _UNLEARNED if isinstance(made, Unlearned) else _BROKEN
            if isinstance(made, BrokenRow):
                if not (skips or (cuts and state == _UNLEARNED)):
                    raise made
                broken[row] = made.reason
            file = places.setdefault(made.place.file, len(places))
            known = (tokens, made.place.line, file, grids, document is None or document.reads_last, state)
            writer.append("rows.bin", np.array([known], ROW))
            if document is not None:
                _append(writer, document, tokens)
                tokens, grids = tokens + len(document.ids), grids + len(document.grids)
                learned += document.counted
            if progress is not None:
                progress(row)
        manifest = {
            "version": VERSION,
            "key": key,
            "source": {"name": source.name, "format": source.format, "files": source.fingerprint()},
            "rows": len(source),
            "tokens": tokens,
            "learned": learned,
            "pictures": grids,
            "places": [*places],
            "broken": broken,
            "files": writer.finish(),
        }
    finally:
        writer.close()
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=1))


def _append(writer: _Writer, document: Document, start: int) -> None:
    ids, labels = document.ids, document.labels
    writer.append("tokens.bin", ids)
    learned = labels != UNLEARNED
    marks = learned.astype(np.uint8) * _LEARNED_BIT
    if document.picture_mask is not None:
        marks |= document.picture_mask.astype(np.uint8) * _PICTURE_BIT
    writer.append("marks.bin", marks)
    writer.append("grids.bin", np.array(document.grids, np.int32).reshape(-1))
    others = np.flatnonzero(learned & (labels != ids))
    writer.append("others.bin", np.stack([others + start, labels[others]], 1).reshape(-1))


def _made(source: Source, maker: Maker) -> Iterator[Document | BrokenRow]:
    """The outlines of all rows in order, asked for ahead; what is broken as its error."""
    coming: deque[Future[Document]] = deque()
    for row in range(len(source)):
        if len(coming) >= _AHEAD:
            yield _settled(coming.popleft())
        coming.append(_asked(source, row, maker))
    while coming:
        yield _settled(coming.popleft())


def _asked(source: Source, row: int, maker: Maker) -> "Future[Document]":
    try:
        return maker.submit(source[row], outline=True)
    except BrokenRow as error:
        broken: Future[Document] = Future()
        broken.set_exception(error)
        return broken


def _settled(future: "Future[Document]") -> Document | BrokenRow:
    try:
        return future.result()
    except BrokenRow as error:
        return error


def _mapped(folder: Path, name: str) -> np.ndarray:
    path, kind = folder / name, np.dtype(_FILES[name])
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def _remove_unfinished(final: Path) -> None:
    """What processes of this machine left behind that ended while they prepared the same."""
    for folder in final.parent.glob(f".{final.name}.{gethostname()}.*"):
        with contextlib.suppress(ValueError, PermissionError):
            try:
                os.kill(int(folder.name.rpartition(".")[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)

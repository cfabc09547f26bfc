"""A path as a run file writes it (a file, a glob, a folder, a name of the Hub) to the containers that it stands for."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from modelwright.data.rows import Container
from modelwright.data.sources.archive import PICTURES, WebDataset
from modelwright.data.sources.columns import Parquet
from modelwright.data.sources.hub import SCHEME, HubRows
from modelwright.data.sources.json_file import JsonFile
from modelwright.data.sources.kept import PACKED, Kept
from modelwright.data.sources.lines import JsonLines, TextDocument, TextLines
from modelwright.data.sources.megatron import Megatron
from modelwright.data.sources.picture_files import PictureFiles
from modelwright.data.sources.separated import Separated
from modelwright.errors import RequestError

DOCUMENT = "document"
"""The format that makes one row of a whole text file."""
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Files that tell of a data set and hold none of its rows."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

Open = Callable[[Path, str, Kept], Container]


_READERS: dict[str, Open] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonFile,
    ".parquet": Parquet,
    ".csv": partial(Separated, separator=","),
    ".tsv": partial(Separated, separator="\t"),
    ".tar": WebDataset,
    ".idx": Megatron,
    ".txt": TextLines,
}
_PLAIN = (".txt", ".text", ".md", ".rst")
"""Files that may be read whole."""


def find_containers(path: str, starts: Sequence[Path], kept: Kept, format: str) -> list[Container]:
    """The containers of ``path``, their files in the order of their names.

    Args:
        path: as written; a relative one is looked for in each of ``starts`` in turn.
        format: of the rows, as stated; ``document`` and ``picture`` decide what a folder holds.

    Raises:
        RequestError: there is nothing there, or nothing that is read.
    """
    files = find_files(path, starts, format)
    if files is None:
        return [HubRows(path)]
    if all(_end(file) in _PICTURE_ENDS for file in files):
        return [PictureFiles(files, [_shown(file) for file in files])]
    return [_open(file, kept, format) for file in files]


def find_files(path: str, starts: Sequence[Path], format: str) -> list[Path] | None:
    """The files of ``path``, by the same arguments; None for a name of the Hub, which is not asked.

    Raises:
        RequestError: there is nothing there, or nothing that is read.
    """
    if path in ("-", "/dev/stdin"):
        raise RequestError(
            "standard input has no rows that can be found again by their numbers, which their order and a resumed run "
            "need: write it to a file"
        )
    if path.startswith(SCHEME):
        return None
    if _ADDRESS.match(path):
        raise RequestError(f"{path} is no file of this machine, a folder, a glob or an {SCHEME} name: copy it here")
    return _files(path, starts, format)


_PICTURE_ENDS = tuple(f".{end}" for end in PICTURES)


def _open(path: Path, kept: Kept, format: str) -> Container:
    if format == DOCUMENT:
        return TextDocument(path, _shown(path), kept)
    if path.suffix == ".bin":
        path = path.with_suffix(".idx")
    read = _READERS.get(_end(path))
    if read is None:
        raise RequestError(f"{path}: files of rows end in {', '.join(_READERS)}, or in {' or '.join(PACKED)} after it")
    return read(path, _shown(path), kept)


def _files(path: str, starts: Sequence[Path], format: str) -> list[Path]:
    asked = os.path.expanduser(path)
    places = [start / asked for start in starts]
    for start, place in zip(starts, places, strict=True):
        if place.is_dir():
            return _inside(place, format)
        if place.exists():
            return [place]
        pair = place.with_name(f"{place.name}.idx")
        if pair.exists():
            return [pair]
        pattern = os.path.join(glob.escape(str(start)), asked)  # the folder that it is relative to is no pattern
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        files = [match for match in matches if match.is_file()]
        if files:
            return _once(files)
    where = " or ".join(dict.fromkeys(str(place) for place in places))
    kind = "no file matches" if any(mark in path for mark in "*?[") else "there is no file or folder"
    raise RequestError(f"{kind} {where}")


def _inside(folder: Path, format: str) -> list[Path]:
    """The files of a folder and those within it that are read: rows before pictures, which rows may name."""
    inside = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file, folder)]
    if format == DOCUMENT:
        kinds = [[file for file in inside if _end(file) in _PLAIN]]
    elif format == "picture":
        kinds = [[file for file in inside if _end(file) in _PICTURE_ENDS]]
    else:
        rows = [file for file in inside if _end(file) in _READERS and file.name not in _DESCRIPTIONS]
        structured = [file for file in rows if _end(file) != ".txt"]
        kinds = [structured, rows, [file for file in inside if _end(file) in _PICTURE_ENDS]]
    files = next((files for files in kinds if files), [])
    if not files:
        raise RequestError(f"the folder {folder} holds no file of rows ({', '.join(_READERS)}) and no picture")
    ends = sorted({_end(file) for file in files if _end(file) not in _PICTURE_ENDS})
    if len(ends) > 1 and format != DOCUMENT:
        raise RequestError(f"the folder {folder} holds files that end in {', '.join(ends)}: name those meant by a glob")
    return files


def _once(files: list[Path]) -> list[Path]:
    """Of Megatron's pairs the index alone."""
    return [file for file in files if file.suffix != ".bin" or file.with_suffix(".idx") not in files]


def _end(path: Path) -> str:
    """What a name ends in, in small letters and without the end of a packer."""
    name = path.name.lower()
    if name.endswith(".tgz"):
        return ".tar"
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _shown(path: Path) -> str:
    """A path in errors and in a run's state: relative to where the program runs, where that is shorter."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""The kernels' library, compiled by this machine's compiler and kept for the next process.

They see data pointers and no torch header, so that this takes seconds. A library that is damaged is never loaded: its
name holds the digest of its bytes. Leaves out who loads it (``build.py``).
"""

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi")
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 600
"""Seconds that a run of the compiler may take."""

progress = logging.getLogger(__name__)
"""Says that the compiler begins, since it takes half a minute."""


class NoKernels(Exception):
    """The kernels cannot be had here; the message says why, in one line."""


def find_compiler() -> str:
    """The path of a C++ compiler: the one that ``CXX`` names, else the first of ``COMPILERS``.

    Raises:
        NoKernels: there is none.
    """
    names = filter(None, (os.environ.get("CXX"), *COMPILERS))
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise NoKernels("there is no C++ compiler (c++, g++ or clang++) on the PATH")
    return found


def compiled(sources: Path, headers: Mapping[str, str], compiler: str, folders: list[Path]) -> Path:
    """The library of the ``.cpp`` files in ``sources``, from one of ``folders`` if the same was compiled there before.

    The same means: sources, compiler, flags and what ``-march=native`` stands for. Several processes may do this at
    once; each renames its finished library into place.

    Args:
        headers: further headers that the sources include, by name.
        folders: where libraries are kept: what is compiled goes to the first that can be written.

    Raises:
        NoKernels: the compiler refuses, or no folder can be written.
    """
    files = sorted(path for path in sources.iterdir() if path.suffix in (".cpp", ".h"))
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])  # they name the version and the CPU
    texts = [*headers.values(), *(path.read_text("utf-8") for path in files)]
    key = hashlib.sha256("\0".join([compiler, *FLAGS, macros, *texts]).encode()).hexdigest()[:32]
    kept = [library for folder in folders if (library := _kept(folder, key))]
    if kept:
        return kept[0]
    with tempfile.TemporaryDirectory(dir=_writable(folders)) as name:
        room = Path(name)
        progress.warning("compiling kernels for this processor (once, about half a minute)")
        for header, text in headers.items():
            (room / header).write_text(text, "utf-8")
        objects = _compile([path for path in files if path.suffix == ".cpp"], compiler, room)
        finished = room / "kernels.so"
        _run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(finished)])
        return finished.replace(room.parent / f"{key}.{_digest(finished)}.so")


def cache_folders() -> list[Path]:
    """Where compiled kernels are kept: the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), or among temporary
    files in a folder that is this user's alone."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folders = [Path(home) / "modelwright" / "kernels"] if os.path.isabs(home) else []
    temporary = Path(tempfile.gettempdir()) / f"modelwright-kernels-{os.getuid()}"
    return [*folders, temporary] if _is_private(temporary) else folders


def _is_private(folder: Path) -> bool:
    """Whether a folder among everybody's is this user's own, made now if need be, and no other can write to it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022


def _kept(folder: Path, key: str) -> Path | None:
    """The whole library of that key in a folder; one that is cut short or otherwise damaged is none."""
    try:
        libraries = sorted(folder.glob(f"{key}.*.so"))
        return next((library for library in libraries if library.name == f"{key}.{_digest(library)}.so"), None)
    except OSError:
        return None


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:32]


def _writable(folders: list[Path]) -> Path:
    """The first folder that can be written, made if need be."""
    refused = []
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            refused.append(f"{folder} ({error.strerror})")
            continue
        return folder
    raise NoKernels(f"no folder to keep compiled kernels can be written: {', '.join(refused)}")


def _compile(files: list[Path], compiler: str, room: Path) -> list[Path]:
    """One object per file, as many at the same time as there are processors."""
    objects = [room / f"{path.stem}.o" for path in files]
    running = [
        subprocess.Popen(
            [compiler, *FLAGS, f"-I{room}", "-c", str(path), "-o", str(made)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for path, made in zip(files, objects, strict=True)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE)[1] for process in running]
    except subprocess.TimeoutExpired:
        raise NoKernels(f"{compiler} took more than {PATIENCE} seconds") from None
    finally:
        for process in running:
            process.kill()  # nothing to those that have ended
    for process, errors in zip(running, said, strict=True):
        if process.returncode:
            raise NoKernels(_refusal(compiler, errors))
    return objects


def _run(command: list[str]) -> str:
    """What a run of the compiler prints."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except OSError as error:
        raise NoKernels(f"{command[0]} does not run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise NoKernels(f"{command[0]} took more than {PATIENCE} seconds") from None
    if ended.returncode:
        raise NoKernels(_refusal(command[0], ended.stderr))
    return ended.stdout


def _refusal(compiler: str, errors: str) -> str:
    """The first error of a compiler in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it says nothing")
    if "-fopenmp" in errors:
        return f"{compiler} does not know OpenMP (-fopenmp), as Apple's compiler does not: {first}"
    return f"{compiler} failed: {first}"

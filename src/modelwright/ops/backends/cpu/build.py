"""The C++ kernels, compiled by the machine's own compiler at their first use and kept for the next process.

They see data pointers and no torch header, so that this takes seconds. Without a compiler, or with the environment
variable ``MODELWRIGHT_KERNELS=0``, there are none, and what they would have done torch does: :func:`reason` says why.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

SWITCH = "MODELWRIGHT_KERNELS"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi")
_KINDS = {"i": ctypes.c_int32, "q": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p, "s": ctypes.c_char_p}
_recording = threading.local()


@dataclass(frozen=True)
class Build:
    """The loaded kernels, or why there are none."""

    library: ctypes.CDLL | None
    reason: str = ""


@cache
def build() -> Build:
    """Load the kernels, compiling them if this machine has not yet; asked once per process."""
    if os.environ.get(SWITCH, "1") == "0":
        return Build(None, f"{SWITCH}=0")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return Build(None, "there is no C++ compiler (c++, g++ or clang++) on the PATH")
    try:
        return Build(ctypes.CDLL(str(compiled(Path(__file__).parent, compiler, cache_folder()))))
    except subprocess.CalledProcessError as error:
        return Build(None, f"{compiler} failed: {error.stderr.strip()}")
    except OSError as error:  # the cache cannot be written, or what stands there not loaded
        return Build(None, str(error))


def call(name: str, kinds: str, *arguments: int | float | bytes) -> None:
    """Run a function of the loaded kernels.

    ``kinds`` has a letter for each argument: i and q are integers of 32 and 64 bits, f a float, p a pointer, and
    s C structures as bytes.
    """
    function = _function(name, kinds)
    function(*arguments)
    if (calls := getattr(_recording, "calls", None)) is not None:
        calls.append(partial(function, *arguments))


@contextmanager
def recording(calls: list[Callable[[], object]]) -> Iterator[None]:
    """Append each :func:`call` of this thread to ``calls``, to be repeated with the memory that it points to."""
    _recording.calls = calls
    try:
        yield
    finally:
        _recording.calls = None


@cache
def _function(name: str, kinds: str) -> Callable[..., None]:
    """A function that converts plain numbers itself, which takes less than making C's of each."""
    library = build().library
    assert library is not None
    function = getattr(library, name)
    function.argtypes, function.restype = [_KINDS[letter] for letter in kinds], None
    return function


def available() -> bool:
    """Whether the compiled kernels run in this process."""
    return build().library is not None


def reason() -> str:
    """Why they do not; empty if they do."""
    return build().reason


def cache_folder() -> Path:
    """Where compiled kernels are kept: the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "modelwright" / "kernels"


def compiled(sources: Path, compiler: str, folder: Path) -> Path:
    """The library of the ``.cpp`` files in ``sources``, from ``folder`` if the same was compiled there before.

    The same means: sources, compiler, flags and what ``-march=native`` stands for. Several processes may do this at
    once; each renames its finished library into place.

    Raises:
        subprocess.CalledProcessError: the compiler refuses.
        OSError: the folder cannot be written.
    """
    files = sorted(path for path in sources.iterdir() if path.suffix in (".cpp", ".h"))
    macros = _run([compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])  # they name the version and the CPU
    key = hashlib.sha256("\0".join([compiler, *FLAGS, macros, *(path.read_text("utf-8") for path in files)]).encode())
    library = folder / f"{key.hexdigest()[:32]}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        objects = _compile([path for path in files if path.suffix == ".cpp"], compiler, Path(room))
        finished = Path(room) / "kernels.so"
        _run([compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(finished)])
        finished.replace(library)
    return library


def _compile(files: list[Path], compiler: str, room: Path) -> list[Path]:
    """One object per file, all at the same time."""
    objects = [room / f"{path.stem}.o" for path in files]
    running = [
        subprocess.Popen([compiler, *FLAGS, "-c", str(path), "-o", str(made)], stderr=subprocess.PIPE, text=True)
        for path, made in zip(files, objects, strict=True)
    ]
    said = [process.communicate()[1] for process in running]
    for process, errors in zip(running, said, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=errors)
    return objects


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

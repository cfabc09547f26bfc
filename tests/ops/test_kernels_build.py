"""How the compiled kernels come about: built once and safely, never loaded damaged, switched off, and missed aloud."""

import ctypes
import logging
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import build, compiler
from modelwright.ops.backends.notices import notices
from modelwright.ops.backends.switch import SWITCH, SwitchError

needs_compiler = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.h").write_text("#define ANSWER 42\n")
    (folder / "one.cpp").write_text('#include "one.h"\nextern "C" int answer() { return ANSWER; }\n')
    return folder


def compiled(sources: Path, folder: Path, **headers: str) -> Path:
    """The library of ``sources``, kept in ``folder``; headers by name without their ending."""
    named = {f"{name}.h": text for name, text in headers.items()}
    return compiler.compiled(sources, named, compiler.find_compiler(), [folder])


def built() -> build.Build:
    """What a process would find now."""
    return build.build.__wrapped__()


@needs_compiler
def test_what_was_compiled_is_found_again_until_a_source_or_a_header_changes(sources, tmp_path, caplog):
    cache = tmp_path / "cache"
    first = compiled(sources, cache)
    assert "compiling kernels for this processor (once" in caplog.text
    caplog.clear()
    made = first.stat().st_mtime_ns
    assert compiled(sources, cache) == first and first.stat().st_mtime_ns == made and not caplog.text
    (sources / "one.h").write_text("#define ANSWER 43\n")
    second = compiled(sources, cache)
    third = compiled(sources, cache, unused="// a header that Python writes\n")
    assert len({first, second, third}) == 3 and ctypes.CDLL(str(third)).answer() == 43
    assert sorted(cache.iterdir()) == sorted([first, second, third])  # and nothing half done


@needs_compiler
def test_several_may_compile_at_once(sources, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: compiled(sources, tmp_path / "cache"), range(3)))
    assert [ctypes.CDLL(str(library)).answer() for library in made] == [42] * 3
    assert set((tmp_path / "cache").iterdir()) == set(made)  # and nothing half done


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "half", "reversed"])
def test_a_damaged_library_is_compiled_anew(sources, tmp_path, damage):
    library = compiled(sources, tmp_path / "cache")
    whole = library.read_bytes()
    library.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "reversed": whole[::-1]}[damage])
    again = compiled(sources, tmp_path / "cache")
    assert again.read_bytes() == whole and ctypes.CDLL(str(again)).answer() == 42
    assert list((tmp_path / "cache").iterdir()) == [again]


@needs_compiler
def test_a_compiler_that_refuses_is_quoted_in_one_line(sources, tmp_path):
    (sources / "two.cpp").write_text("this is no C++\n")
    with pytest.raises(compiler.NoKernels, match=r"failed: .*two\.cpp:1.* error: ") as caught:
        compiled(sources, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def planted_compiler(folder: Path, script: str) -> str:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", r"c\+\+ failed: it says nothing"),
        ("echo 'fatal error: license expired' >&2; exit 1", r"c\+\+ failed: fatal error: license expired"),
        ("echo \"clang: error: unsupported option '-fopenmp'\" >&2; exit 1", r"c\+\+ does not know OpenMP .*Apple's"),
    ],
)
def test_a_broken_compiler_leaves_no_kernels_and_says_so_once(tmp_path, monkeypatch, caplog, script, reason):
    planted_compiler(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("CXX", raising=False)
    found = built()
    assert not found.kernels
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == f"torch computes instead of the compiled kernels, more slowly: {found.reason}"
    assert re.search(reason, found.reason)


def test_a_file_that_is_no_program_is_a_broken_compiler(tmp_path, monkeypatch):
    planted = Path(planted_compiler(tmp_path, ""))
    planted.write_bytes(b"\x7fELF broken")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert built().reason == f"{planted} does not run: Exec format error"


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert built() == build.Build({}, "there is no C++ compiler (c++, g++ or clang++) on the PATH")


def test_on_windows_there_are_none_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(build.sys, "platform", "win32")
    monkeypatch.delattr(compiler.os, "getuid")
    assert built().reason == "the kernels are not compiled on Windows"


@needs_compiler
def test_a_library_that_lacks_a_function_is_not_used(sources, tmp_path, monkeypatch):
    library = compiled(sources, tmp_path)
    monkeypatch.setattr(build, "compiled", lambda *_: library)
    assert built().reason.startswith("the compiled kernels lack a function: ")


@pytest.mark.parametrize("value", ["0", "off", "FALSE", "no"])
def test_the_switch_turns_them_off_without_a_word(monkeypatch, caplog, value):
    monkeypatch.setenv(SWITCH, value)
    assert built() == build.Build({}, f"MODELWRIGHT_KERNELS={value}")
    assert notices(CPU, torch.float32) == () and not caplog.text


@pytest.mark.parametrize("value", ["", "1", "on", "True", "yes"])
def test_the_switch_leaves_them_on(monkeypatch, value):
    monkeypatch.setenv(SWITCH, value)
    assert built().reason == kernels.reason()


def test_any_other_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "2")
    said = "MODELWRIGHT_KERNELS must be 1, on, true, yes or 0, off, false, no, got '2'"
    for asked in (built, lambda: notices(CPU, torch.float32)):
        with pytest.raises(SwitchError) as caught:
            asked()
        assert str(caught.value) == said


@pytest.mark.slow
def test_torch_computes_where_they_are_off():
    script = (
        "import torch\nfrom modelwright.ops.backends import cpu as kernels\n"
        "from modelwright.ops.paged import decode_attention\n"
        "from modelwright.ops.pages import Pages; pages = Pages(torch.ones(1, 2, 1, 4))\n"
        "with torch.no_grad():\n"
        "    out = decode_attention(torch.ones(1, 1, 4), pages, pages, torch.tensor([2]), torch.tensor([[0]]), 1.0)\n"
        "print(kernels.available(), kernels.reason(), out.tolist())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {SWITCH: "0"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split("\n")[0] == "False MODELWRIGHT_KERNELS=0 [[[1.0, 1.0, 1.0, 1.0]]]"


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86's least instructions are asked for")
def test_kernels_are_right_with_the_registers_of_any_processor(tmp_path):
    """SSE2's hold 4 floats, so that a vector is two of two; every kernel is held to its reference."""
    script = (
        "import torch\nfrom modelwright.ops.backends.cpu import build, compiler\n"
        "compiler.FLAGS = tuple(flag.replace('native', 'x86-64') for flag in compiler.FLAGS)\n"
        "from modelwright.ops.check import compared\n"
        "found = list(compared(torch.device('cpu')))\n"
        "print(sorted({(each.op, each.dtype) for each in found}))\n"
        "print([each for each in found if not each.right])\n"
    )
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    operations, wrong = said.stdout.splitlines()
    for op in ("linear", "decode_attention", "experts"):
        assert f"('{op}', 'bfloat16')" in operations
    assert wrong == "[]"
    (library,) = tmp_path.glob("modelwright/kernels/*.so")
    assert library.stat().st_size


class TestFolders:
    """Where libraries are kept when the user's cache cannot be written; a file in its place refuses root as well."""

    @pytest.fixture
    def blocked(self, tmp_path, monkeypatch) -> Path:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
        (tmp_path / "tmp").mkdir()
        return tmp_path / "tmp" / f"modelwright-kernels-{os.getuid()}"

    def test_the_users_own_folder_among_temporary_files_serves(self, blocked, sources):
        library = compiler.compiled(sources, {}, compiler.find_compiler(), compiler.cache_folders())
        assert library.parent == blocked and blocked.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
    def test_one_that_others_can_write_to_does_not(self, blocked, mode):
        blocked.mkdir()
        blocked.chmod(mode)
        found = built()
        assert not found.kernels
        assert found.reason.startswith("no folder to keep compiled kernels can be written: ") and "file" in found.reason
        [said] = notices_of(found)
        assert said.startswith("torch computes instead of the compiled kernels, more slowly: no folder")

    def test_nor_does_a_link_or_the_folder_of_another(self, blocked, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(mode=0o700)
        blocked.symlink_to(elsewhere)
        assert blocked not in compiler.cache_folders()
        blocked.unlink()
        blocked.mkdir(mode=0o700)
        assert blocked in compiler.cache_folders()
        uid = os.getuid()
        monkeypatch.setattr(compiler.os, "getuid", lambda: uid + 1)
        of_other = blocked.rename(blocked.with_name(f"modelwright-kernels-{uid + 1}"))
        assert of_other not in compiler.cache_folders()


def notices_of(found: build.Build) -> tuple[str, ...]:
    """What the user is told where a process found this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build", lambda: found)
        return notices(CPU, torch.bfloat16)


def test_nothing_is_said_where_there_are_kernels():
    assert notices_of(build.Build({"linear_rows": build.Kernel("linear_rows", print)})) == ()


@needs_compiler
def test_who_watches_torchs_functions_sees_the_kernels():
    """As a recorder does: one door for every call, and no other state than torch's own stack of modes."""
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if isinstance(func, build.Kernel):
                seen.append((func.name, len(args)))
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 16)
    with Watching():
        kernels.linear(x, torch.randn(4, 16))
        kernels.rms_norm(x, torch.ones(16), 1e-6, True)
    kernels.rms_norm(x, torch.ones(16), 1e-6, True)
    assert seen == [("linear_rows", 8), ("norm_rows", 9)]

"""Compiling the kernels: once and safely, never loading what is damaged, and saying in one line why there are none."""

import ctypes
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import build, compiler, layouts

compiled = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
HEADERS = {"made.h": "#define MADE 1\n"}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.h").write_text("#define ANSWER 42\n")
    answer = 'extern "C" int answer() { return ANSWER * MADE; }'
    (folder / "one.cpp").write_text(f'#include "one.h"\n#include "made.h"\n{answer}\n')
    return folder


def compile_into(sources: Path, *folders: Path, told: list[str] | None = None, headers=HEADERS) -> Path:
    tell = ([] if told is None else told).append
    return compiler.compiled(sources, headers, compiler.find_compiler(), list(folders), tell)


@compiled
def test_what_was_compiled_is_found_again_until_a_source_changes(sources, tmp_path):
    told: list[str] = []
    first = compile_into(sources, tmp_path / "cache", told=told)
    made = first.stat().st_mtime_ns
    assert compile_into(sources, tmp_path / "cache", told=told) == first and first.stat().st_mtime_ns == made
    assert told == ["compiling kernels for this processor (once, about half a minute)"]
    (sources / "one.h").write_text("#define ANSWER 43\n")
    second = compile_into(sources, tmp_path / "cache")
    third = compile_into(sources, tmp_path / "cache", headers={"made.h": "#define MADE 2\n"})
    assert len({first, second, third}) == 3
    assert ctypes.CDLL(str(third)).answer() == 86
    assert sorted((tmp_path / "cache").iterdir()) == sorted([first, second, third])  # and nothing half done


@compiled
def test_several_may_compile_at_once(sources, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: compile_into(sources, tmp_path / "cache"), range(3)))
    assert [ctypes.CDLL(str(path)).answer() for path in made] == [42] * 3
    assert set((tmp_path / "cache").iterdir()) == set(made)


@compiled
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b""], ids=["cut", "empty"])
def test_a_damaged_library_is_compiled_again(sources, tmp_path, damage):
    library = compile_into(sources, tmp_path / "cache")
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    again = compile_into(sources, tmp_path / "cache")
    assert again.read_bytes() != damage(whole) and ctypes.CDLL(str(again)).answer() == 42


@compiled
def test_a_compiler_that_refuses_is_quoted_in_one_line(sources, tmp_path):
    (sources / "two.cpp").write_text("this is no C++\n")
    with pytest.raises(compiler.NoKernels, match=r"failed: .*two\.cpp.*error") as caught:
        compile_into(sources, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@compiled
def test_a_structure_laid_out_otherwise_does_not_compile(sources, tmp_path):
    """A number that C would place elsewhere than Python packs it."""
    header = layouts.header()
    planted = header.replace("sizeof(Weight) == ", "sizeof(Weight) == 1 + ")
    assert planted != header
    (sources / "one.cpp").write_text('#include "layouts.h"\n')
    compile_into(sources, tmp_path / "cache", headers={"layouts.h": header})
    with pytest.raises(compiler.NoKernels, match=r"Weight is not as large as layouts\.py packs it"):
        compile_into(sources, tmp_path / "cache", headers={"layouts.h": planted})


@compiled
def test_a_folder_that_cannot_be_written_gives_way_to_the_next(sources, tmp_path):
    (tmp_path / "file").write_text("")
    library = compile_into(sources, tmp_path / "file" / "cache", tmp_path / "other")
    assert library.parent == tmp_path / "other"
    with pytest.raises(compiler.NoKernels, match=r"no folder to keep compiled kernels can be written: .*file"):
        compile_into(sources, tmp_path / "file" / "cache")


def test_without_a_compiler_there_are_no_kernels_and_a_warning_says_so(monkeypatch, caplog):
    monkeypatch.delenv("MODELWRIGHT_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        found = build.build.__wrapped__()
    reason = "there is no C++ compiler (c++, g++ or clang++) on the PATH"
    assert found == build.Build(reason=reason)
    assert caplog.messages == [f"torch computes instead of the compiled kernels, more slowly: {reason}"]


@pytest.mark.parametrize("word", ["0", "off", "false", "no"])
def test_every_word_for_off_is_off(word):
    script = "from modelwright.ops.backends import cpu; print(cpu.available(), cpu.reason())"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"MODELWRIGHT_KERNELS": word},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == f"False MODELWRIGHT_KERNELS={word}"

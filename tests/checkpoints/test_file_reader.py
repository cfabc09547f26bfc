"""Bytes of a file in memory that is there: any stretch, by one thread or several, in as many reads as it takes."""

from io import FileIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.checkpoints import file_reader
from modelwright.checkpoints.file_reader import reading

CONTENT = bytes(index * 7919 % 251 for index in range(50_000))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "bytes"
    path.write_bytes(CONTENT)
    return path


@given(start=st.integers(0, len(CONTENT)), length=st.integers(0, len(CONTENT)), shared=st.integers(1, 60_000))
def test_any_stretch_is_read(path, start, length, shared):
    length = min(length, len(CONTENT) - start)
    memory, seen = bytearray(length), []
    with pytest.MonkeyPatch.context() as patch, reading(path) as fill:
        patch.setattr(file_reader, "SHARED", shared)
        patch.setattr(file_reader, "PIECE", 1000)
        fill(start, memoryview(memory), lambda piece: seen.append(bytes(piece)))
    assert memory == CONTENT[start : start + length]
    assert sum(map(len, seen)) == length and all(piece in CONTENT for piece in seen)
    assert sum(len(piece) % 8 > 0 for piece in seen) <= 1  # whole numbers, but for the end


def ignored(piece):
    """What nobody looks at."""


def test_what_looking_finds_ends_the_reading(path, monkeypatch):
    monkeypatch.setattr(file_reader, "SHARED", 1)

    def look(piece):
        raise KeyError(len(piece))

    with pytest.raises(KeyError), reading(path) as fill:
        fill(0, memoryview(bytearray(40_000)), look)


class Hesitant(FileIO):
    """Gives a thousand bytes at a time, as a network's file may."""

    def readinto(self, buffer):
        return super().readinto(buffer[:1000])


def test_a_read_may_give_less_than_was_asked_for(path, monkeypatch):
    monkeypatch.setattr(file_reader, "FileIO", Hesitant)
    monkeypatch.setattr(file_reader, "SHARED", 10_000)
    memory = bytearray(40_000)
    with reading(path) as fill:
        fill(123, memoryview(memory), ignored)
    assert memory == CONTENT[123:40_123]


@pytest.mark.parametrize("shared", [1, 10**6], ids=["several threads", "one"])
def test_a_file_that_ends_too_early_says_where(shared, path, monkeypatch):
    monkeypatch.setattr(file_reader, "SHARED", shared)
    with pytest.raises(OSError, match=r"^it ends before byte 50001$"), reading(path) as fill:
        fill(49_901, memoryview(bytearray(100)), ignored)


def test_files_are_closed_whatever_happens(path, monkeypatch):
    opened = []

    class Noted(FileIO):
        def __init__(self, *args):
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr(file_reader, "FileIO", Noted)
    with pytest.raises(KeyError), reading(path):
        raise KeyError
    assert len(opened) == file_reader.THREADS
    assert all(file.closed for file in opened)

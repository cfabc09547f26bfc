"""The exported folder: new, in place of an older export, or refused; whole or not there."""

from pathlib import Path

import pytest

from modelwright.errors import CheckpointError
from modelwright.export.folder import exported_folder
from modelwright.export.manifest import FILE, Manifest


def fill(path, text):
    with exported_folder(path) as place:
        (place / FILE).write_text(text)


@pytest.mark.parametrize("name", ["out", "a b/ü 像"])
def test_a_folder_is_made_and_replaced_whole(tmp_path, name):
    out = tmp_path / name
    fill(out, "1")
    (out / "decoder.onnx.data").write_text("of the first")
    fill(out, "2")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(FILE, "2")]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_no_export_wrote_stays(tmp_path):
    out = tmp_path / "out"
    export(out, "decoder.onnx", "decoder.onnx.data", "vision.onnx", "tokenizer/vocab.txt")
    (out / "notes.md").write_text("mine")
    (out / "tokenizer" / "mine.txt").write_text("mine")
    (out / "runs" / "1").mkdir(parents=True)
    (out / "runs" / "log").symlink_to("nowhere")
    (out / "notes.md").chmod(0o600)
    export(out, "decoder.onnx")
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    assert names == [
        *("decoder.onnx", FILE, "notes.md", "runs", "runs/1", "runs/log", "tokenizer", "tokenizer/mine.txt"),
    ]
    assert (out / "notes.md").read_text() == "mine" and (out / "notes.md").stat().st_mode & 0o777 == 0o600
    export(out, "decoder.onnx")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == names


def export(out, *names):
    """A folder as exports leave it: a manifest and graphs."""
    graphs = {Path(name).stem: name for name in names if name.endswith(".onnx")}
    with exported_folder(out) as place:
        Manifest("llama", graphs, "float32", "float32", 1, [], True, 9, None, 20).write(place)
        for name in names:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text("exported")


def test_an_empty_folder_is_taken_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    fill(tmp_path / "link", "1")
    fill(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / FILE).read_text() == "2"


def test_what_is_not_ours_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=rf"is not empty and holds no {FILE}, so it is no export of ours"):
        fill(tmp_path, "1")
    with pytest.raises(CheckpointError, match="is a file; name a new folder"):
        fill(tmp_path / "mine.txt", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_new(tmp_path):
    fill(tmp_path / "out", "1")
    with pytest.raises(KeyError), exported_folder(tmp_path / "out") as place:
        (place / FILE).write_text("2")
        raise KeyError
    assert (tmp_path / "out" / FILE).read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unwritable_place_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        fill(tmp_path / "file" / "out", "1")

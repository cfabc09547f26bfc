"""The exported folder: new, in place of an older export, or refused; whole or not there."""

import pytest

from modelwright.errors import CheckpointError
from modelwright.export.folder import exported_folder
from modelwright.export.manifest import FILE


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

"""Lines of JSON: what may stand in one, what it is called, and which earlier answers are answers to it."""

import json

import pytest

from modelwright.cli.answers import AnswerFile, Kept, whole_answers
from modelwright.cli.lines import Line, read_lines
from modelwright.cli.source import open_lines
from modelwright.errors import RequestError


def line(text: str) -> Line:
    return Line(1, text, "")


def test_blank_lines_are_no_lines_and_numbers_are_those_of_the_file():
    lines = list(read_lines(["\n", '{"prompt": "a"}\n', "  \n", '{"prompt": "b"}'], {}))
    assert [(one.number, one.id, one.text) for one in lines] == [(2, 2, '{"prompt": "a"}'), (4, 4, '{"prompt": "b"}')]


def test_a_key_is_the_same_for_the_same_text_and_settings_only():
    def keys(text, settings):
        return [one.key for one in read_lines([text], settings)]

    assert keys("a\n", {"x": 1, "y": 2}) == keys(" a", {"y": 2, "x": 1}) != keys("a", {"x": 1})
    assert keys("a", {}) != keys("b", {})
    assert [len(key) for key in keys("a", {})] == [16]


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ('{"id": "x"}', "x"),
        ('{"id": 7}', 7),
        ('{"id": null}', 1),
        ('{"id": [1]}', 1),
        ('{"prompt": "a"}', 1),
        ("[1]", 1),
        ("?", 1),
        ("[" * 100_000, 1),
    ],
)
def test_a_line_is_called_by_its_id_or_its_number(text, id_):
    assert line(text).id == id_


def test_the_fields_of_a_line():
    assert line('{"id": 3, "prompt": "a", "top_p": 1}').fields(["top_p"]) == {"prompt": "a", "top_p": 1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "the line is not JSON: Expecting property name enclosed in double quotes at character 2"),
        ('{"prompt": "a", "prompt": "b"}', "the line holds an object with the name 'prompt' twice"),
        ('{"messages": [{"role": "user", "role": "a"}]}', "the line holds an object with the name 'role' twice"),
        ('{"prompt": "a", "top_p": NaN}', "the line holds NaN, which JSON does not have"),
        ("[1, 2]", "the line must be a JSON object, got [1, 2]"),
        ('{"prompt": "\udcff"}', "the line is not UTF-8: byte 13 is 0xff"),
        (
            '{"prompt": "\\ud800"}',
            "the line holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
        ),
        ("{}", "a line needs exactly one of prompt, messages, prompt_token_ids, got none"),
        (
            '{"prompt": "a", "messages": []}',
            "a line needs exactly one of prompt, messages, prompt_token_ids, got prompt, messages",
        ),
        ('{"prompt": "a", "top_q": 1}', 'unknown field "top_q"; did you mean "top_p"?'),
        ('{"prompt": "a", "zzz": 1}', 'unknown field "zzz"'),
        ('{"prompt": "a", "id": 1.5}', "an id must be a string or an integer"),
    ],
)
def test_a_line_that_cannot_be_read(text, sentence):
    with pytest.raises(RequestError) as caught:
        line(text).fields(["top_p"])
    assert str(caught.value) == sentence


def test_deep_json_is_refused():
    with pytest.raises(RequestError, match="the line is nested too deep"):
        line("[" * 100_000).fields([])


def test_bytes_that_are_no_text_reach_the_line_that_holds_them(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "\xff"}\n')
    with open_lines(path) as source:
        first, second = read_lines(source, {})
    assert first.fields([]) == {"prompt": "a"}
    with pytest.raises(RequestError, match="the line is not UTF-8"):
        second.fields([])


ASKED = ["a", "b", "c"]


def answered(path, *answers) -> tuple[Kept, list[str]]:
    """What of `answers` counts, and the lines that are left."""
    path.write_bytes(b"".join(answers))
    lines = read_lines(ASKED, {})
    kept = whole_answers(path, lines)
    return kept, [one.text for one in lines]


def answer(asked: str, **more) -> bytes:
    (one,) = read_lines([asked], {})
    return json.dumps({"id": 1, **more, "key": one.key}).encode() + b"\n"


def test_whole_answers_are_counted_and_their_lines_are_not_asked_again(tmp_path):
    first, second = answer("a", text="A"), answer("b", error="bad")
    assert answered(tmp_path / "o", first, second) == (Kept(2, 1, len(first + second)), ["c"])
    assert answered(tmp_path / "o") == (Kept(), ASKED)


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_does_not_count(tmp_path, cut):
    first = answer("a", text="A")
    assert answered(tmp_path / "o", first, answer("b", text="B")[:-cut]) == (Kept(1, 0, len(first)), ["b", "c"])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([answer("b")], "its line 1 is not the answer to line 1 of this input"),
        ([answer("a"), b"notes\n"], "its line 2 is not the answer to line 2 of this input"),
        ([answer("a"), b"[]\n"], "its line 2 is not the answer to line 2"),
        ([answer("a"), answer("b"), answer("c"), answer("d")], "its line 4 is not the answer to a line of this input"),
    ],
)
def test_a_file_of_other_answers_is_refused(tmp_path, answers, words):
    with pytest.raises(RequestError) as caught:
        answered(tmp_path / "o", *answers)
    assert words in str(caught.value)
    assert str(caught.value).endswith("--overwrite starts anew")


def test_no_file_holds_no_answers(tmp_path):
    assert whole_answers(tmp_path / "none", read_lines(ASKED, {})) == Kept()


def test_answers_are_written_behind_those_that_are_kept(tmp_path):
    path = tmp_path / "o"
    path.write_bytes(b"kept\ntorn")
    with AnswerFile(path, 5) as file:
        file.write({"text": "鸟"})
        assert path.read_text("utf-8") == 'kept\n{"text": "鸟"}\n'  # there before the file is closed


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"--output .*folder: the file cannot be written: Is a directory"):
        AnswerFile(tmp_path / "folder")

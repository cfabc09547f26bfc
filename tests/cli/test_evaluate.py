"""``modelwright evaluate``: the loss of files by hand and by the command, answers counted, and its refusals."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from modelwright import zoo
from modelwright.cli import evaluate_options, evaluate_tasks
from modelwright.serving.load import load
from modelwright.serving.prompts import encode_messages

CHAT = [{"role": "user", "content": "How many circles are there?"}, {"role": "assistant", "content": "There are two."}]


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n")
    return path


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = ("The picture shows two shapes.", "There are five letters on the card, and a blue square.")
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@torch.no_grad()
def by_hand(loaded, ids, learned):
    """The mean loss of the last ``learned`` tokens."""
    logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return F.cross_entropy(logits[-learned:], torch.tensor(ids[-learned:])).item()


def test_each_file_has_its_own_loss(run, chats, texts):
    found = json.loads(
        run("evaluate", "vl2-nano", "--data", chats, "--data", texts, "--json", "--dtype", "float32").out
    )
    assert list(found) == [str(chats), str(texts)]
    loaded = load(zoo.path("vl2-nano"), dtype="float32", device="cpu")
    asked = encode_messages(loaded, [*CHAT[:1], {"role": "assistant", "content": ""}]).input_ids.tolist()
    answer = [*loaded.tokenizer.encode("There are two.", add_special_tokens=False), loaded.tokenizer.eos_token_id]
    assert found[str(chats)]["labels"] == len(answer)
    assert found[str(chats)]["loss"] == pytest.approx(by_hand(loaded, asked + answer, len(answer)), rel=1e-4)


def test_names_of_held_out_rows_that_nothing_reads_are_told(run, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "two shapes", "id": 3}) + "\n")
    said = run("evaluate", "vl2-nano", "--data", path)
    assert said.code == 0 and f"{path}: nothing reads id of its rows\n" in said.err


def test_a_line_says_loss_perplexity_and_exact_answers(run, chats):
    said = run("evaluate", "vl2-nano", "--data", chats, "--exact")
    assert said.code == 0
    line = r"loss \d+\.\d{4}  perplexity \d+\.\d{3}  over \d+ labels  exact 0\.0% of 1 rows\n"
    assert re.fullmatch(re.escape(f"{chats}: ") + line, said.out)


@pytest.mark.slow
def test_the_first_rows_alone_may_be_measured_and_answered(run, texts, chats, tmp_path):
    first, answered = tmp_path / "first.jsonl", tmp_path / "three.jsonl"
    first.write_text(texts.read_text().splitlines()[0] + "\n")
    answered.write_text(3 * chats.read_text())
    asked = ("evaluate", "vl2-nano", "--json", "--dtype", "float32")
    few, one = (json.loads(run(*asked, *more).out) for more in (("--data", texts, "--limit", "1"), ("--data", first)))
    assert few[str(texts)] == one[str(first)]
    found = json.loads(run(*asked, "--data", answered, "--limit", "2", "--exact").out)[str(answered)]
    assert found["rows"] == 2 and found["labels"] > 0
    more = json.loads(run(*asked, "--data", answered, "--limit", "9").out)[str(answered)]
    assert more["labels"] == 3 * found["labels"] / 2


def test_a_saved_model_gives_the_same_numbers(run, texts, tmp_path):
    loaded = load(zoo.path("vl2-nano"), dtype="float32", device="cpu")
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.processor.save_pretrained(tmp_path / "saved")
    first, second = (
        json.loads(run("evaluate", model, "--data", texts, "--json", "--dtype", "float32").out)
        for model in ("vl2-nano", tmp_path / "saved")
    )
    assert first == second


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "evaluate takes either --data or --tasks, got neither"),
        (("--data", "a", "--tasks", "b"), "evaluate takes either --data or --tasks, got both"),
        (("--data", "a", "--limit", "0"), "--limit must be at least 1, got 0"),
        (("--tasks", "a", "--exact"), "--exact goes with --data"),
        (("--data", "a", "--seq-length", "1"), "--seq-length must be at least 2, got 1"),
        (("--data", "a", "--labels", "lst"), "--labels must be one of assistant, last, all; got 'lst'; did you mean"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_what_does_not_go_together_is_refused(run, options, said):
    ended = run("evaluate", "vl2-nano", *options)
    assert ended.code == 2 and said in ended.err and len(ended.err.splitlines()) == 1 and not ended.out


@pytest.mark.parametrize("lacking", ["lm-eval", "accelerate"])
def test_tasks_without_a_package_are_refused_before_anything_is_loaded(run, monkeypatch, lacking):
    """lm-eval 0.4.10 and later import accelerate and do not ask for it."""
    monkeypatch.setattr(evaluate_options, "find_spec", lambda name: None if name == lacking.replace("-", "_") else name)
    ended = run("evaluate", "vl2-nano", "--tasks", "hellaswag")
    assert ended.code == 2
    said = f'--tasks needs {lacking}, which is not installed: pip install "modelwright[eval]"'
    assert ended.err == f"modelwright: {said}\n"


class Manager:
    def __init__(self, include_path):
        self.include_path = include_path

    def match_tasks(self, names):
        return [name for name in names if name in ("mine", "endings")]


@pytest.fixture
def harness(monkeypatch):
    """lm-eval as far as the command sees it; what it was asked is kept."""
    asked = {}
    results = {"mine": {"alias": "mine", "acc,none": 0.5, "acc_stderr,none": 0.25, "f1,strict": 1.0, "sample_len": 4}}

    def simple_evaluate(**arguments):
        asked.update(arguments)
        return {"results": results}

    modules = {
        "lm_eval": SimpleNamespace(simple_evaluate=simple_evaluate),
        "lm_eval.tasks": SimpleNamespace(TaskManager=Manager),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **arguments: arguments),
    }
    monkeypatch.setattr(evaluate_options, "find_spec", lambda name: object())
    monkeypatch.setattr(evaluate_tasks, "import_module", modules.__getitem__)
    return asked


def test_what_tasks_tell_is_no_file_called_as_streams_are(run, harness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run("evaluate", "vl2-nano", "--tasks", "mine", "-o", "-")
    said = "--output -: - stands for a stream, and what is written here is a file: name one"
    assert (ended.code, ended.err) == (2, f"modelwright: {said}\n") and not [*tmp_path.iterdir()]


def test_tasks_are_asked_of_our_model(run, harness, tmp_path):
    out = tmp_path / "found.json"
    ended = run("evaluate", "vl2-nano", "--tasks", "mine", "--include-path", tmp_path, "--limit", "2", "-o", out)
    assert ended.out == "mine: acc 0.5000 (+- 0.2500)\nmine: f1 [strict] 1.0000\n"
    assert harness["tasks"] == ["mine"] and harness["limit"] == 2
    assert harness["task_manager"].include_path == str(tmp_path)
    assert type(harness["model"]["pretrained"]).__name__ == "DeepseekVLV2ForCausalLM"
    assert json.loads(out.read_text())["results"]["mine"]["acc,none"] == 0.5


def test_unknown_tasks_and_models_of_colours_are_refused(run, harness):
    assert (
        "--tasks must name tasks of lm-eval or of --include-path, got yours"
        in run("evaluate", "vl2-nano", "--tasks", "mine,yours").err
    )
    assert "the tokens of imagegpt-nano are colours" in run("evaluate", "imagegpt-nano", "--tasks", "mine").err

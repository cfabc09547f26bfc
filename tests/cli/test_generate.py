"""``modelwright generate``: answers in order, lines that fail, going on after a stop, and every refusal's sentence."""

import base64
import json
import shutil
import signal

import pytest
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import load_file, save_file

from modelwright.cli.answers import AnswerFile
from modelwright.cli.batch_run import AHEAD, HELD, BatchRun
from modelwright.cli.lines import read_lines
from modelwright.engine.engine import Engine
from modelwright.engine.output import FinishReason
from modelwright.engine.results import Completion, Update
from modelwright.engine.runner import Runner
from modelwright.errors import RequestError
from modelwright.parallel import RankLost
from modelwright.serving.load import load
from modelwright.serving.prompts import IMAGE
from tests.checkpoints.tiny import PICTURE, write_v2

IDS = [[5, 6, 7], [9] * 20, [5, 6, 7, 8], [30, 31], [40], [41, 42]]


@pytest.fixture
def generate(run, tmp_path):
    """``generate(model, lines, ...)``: how the command ended, and its answers without their keys."""

    def command(model, lines, *args, output="out.jsonl"):
        source = tmp_path / "in.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        source.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        ended = run("generate", model, "--input", source, "--output", tmp_path / output, *args)
        path = tmp_path / output
        answers = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        return ended, [{name: value for name, value in one.items() if name != "key"} for one in answers]

    return command


def greedy(checkpoint, prompts, tokens):
    """What the engine says to token ids, one prompt at a time."""
    from modelwright.serving.defaults import sampling_params

    loaded = load(checkpoint)
    engine = Engine(loaded.model, tokenizer=loaded.tokenizer)
    params = sampling_params(loaded.model.config, {"max_tokens": tokens})
    return [engine.generate([ids], params)[0].completions[0] for ids in prompts]


def test_answers_come_in_the_order_of_the_lines_whatever_their_lengths(generate, v2):
    lengths = [30, 1, 12, 2, 25, 3]
    lines = [{"prompt_token_ids": ids, "max_tokens": n, "id": f"q{n}"} for ids, n in zip(IDS, lengths, strict=True)]
    ended, answers = generate(v2, lines, "--max-batch", 2, "--token-budget", 8)
    assert ended.code == 0 and ended.out == ""
    assert [one["id"] for one in answers] == [f"q{n}" for n in lengths]
    alone = [greedy(v2, [ids], n)[0] for ids, n in zip(IDS, lengths, strict=True)]
    assert [one["text"] for one in answers] == [one.text for one in alone]
    assert [one["finish_reason"] for one in answers] == [one.finish_reason.value for one in alone]
    assert [one["completion_tokens"] for one in answers] == [len(one.tokens) for one in alone]
    assert [one["prompt_tokens"] for one in answers] == [len(ids) for ids in IDS]


def test_text_messages_and_ids_of_one_prompt_have_one_answer(generate, run, v2):
    tokenizer = load(v2).tokenizer
    text = "<｜begin▁of▁sentence｜>User: Hello\n\nAssistant:"
    ids = tokenizer.encode(text, add_special_tokens=False)
    lines = [
        {"prompt": text.removeprefix("<｜begin▁of▁sentence｜>") if tokenizer.encode("") else text},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"prompt_token_ids": ids},
    ]
    _, answers = generate(v2, lines, "--max-tokens", 6)
    said = run("chat", v2, "Hello", "--max-new-tokens", 6).out
    assert [one["prompt_tokens"] for one in answers] == [len(ids)] * 3
    assert len({one["text"] for one in answers}) == 1
    assert answers[0]["text"].strip() == said.strip() != ""


def test_an_animated_picture_is_told(generate, vl2, tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    encoded = base64.b64encode((tmp_path / "a.gif").read_bytes()).decode()
    asked = {"role": "user", "content": "What is it?", "images": [str(tmp_path / "a.gif"), str(PICTURE)]}
    part = {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{encoded}"}}
    ended, answers = generate(
        vl2, [{"messages": [asked]}, {"messages": [{"role": "user", "content": [part]}]}], "--max-tokens", 1
    )
    told = [line for line in ended.err.splitlines() if line.startswith("modelwright: line")]
    assert told == [
        f"modelwright: line {number}: {name} is animated; the first of its 2 frames is shown"
        for number, name in ((1, tmp_path / "a.gif"), (2, "a picture"))
    ]
    assert not any("error" in answer for answer in answers)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "What is it?", "images": [str(PICTURE)]},
        {"content": f"{IMAGE}\nWhat is it?", "images": [str(PICTURE)]},
        {"content": [{"type": "image", "path": str(PICTURE)}, {"type": "text", "text": "What is it?"}]},
    ],
)
def test_pictures_are_seen(generate, run, vl2, message):
    _, (answer,) = generate(vl2, [{"messages": [{"role": "user", **message}]}], "--max-tokens", 8)
    chat = json.loads(run("chat", vl2, "What is it?", "--image", PICTURE, "--max-new-tokens", 8, "--json").out)
    assert answer["text"].strip() == chat["text"] != ""
    assert answer["prompt_tokens"] == chat["usage"]["prompt_tokens"]


def test_the_fields_of_a_line_come_before_the_options(generate, v2):
    lines = [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [5, 6], "max_tokens": 3}]
    lines += [{"prompt_token_ids": [5, 6], "temperature": 3, "seed": seed} for seed in (1, 1, 2)]
    _, answers = generate(v2, lines, "--max-tokens", 9)
    assert [one["completion_tokens"] for one in answers[:2]] == [9, 3]
    greedy, _, first, again, other = (one["text"] for one in answers)
    assert first == again != other
    assert greedy not in (first, other)


def test_several_outputs_and_logprobs(generate, v2):
    lines = [{"prompt_token_ids": [5, 6], "n": 2, "temperature": 1, "seed": 0, "logprobs": 1, "max_tokens": 4}]
    _, (answer,) = generate(v2, lines)
    assert list(answer) == ["id", "texts", "finish_reasons", "logprobs", "prompt_tokens", "completion_tokens"]
    assert len(answer["texts"]) == len(answer["finish_reasons"]) == 2
    drawn = [len(each) for each in answer["logprobs"]]
    assert answer["completion_tokens"] == sum(drawn)
    assert list(answer["logprobs"][0][0]) == ["token_id", "logprob", "rank", "top"]


def test_a_stop_text_and_biases_written_as_json_can(generate, v2):
    (said,) = greedy(v2, [[5, 6, 7]], 8)
    stop = said.text[2:5]
    lines = [{"prompt_token_ids": [5, 6, 7], "stop": stop}, {"prompt_token_ids": [5, 6, 7]}]
    lines += [{"prompt_token_ids": [5, 6, 7], "logit_bias": {"44": 100}, "max_tokens": 2, "logprobs": 0}]
    _, (one, other, biased) = generate(v2, lines, "--max-tokens", 8, "--stop", said.text[3:6])
    assert one["text"] == said.text[: said.text.index(stop)]
    assert other["text"] == said.text[: said.text.index(said.text[3:6])]
    assert [token["token_id"] for token in biased["logprobs"]] == [44, 44]


BAD = [
    ("{", "line {n}: the line is not JSON: Expecting property name enclosed in double quotes at character 2"),
    ({"prompt": "a", "max_token": 3}, 'line {n}: unknown field "max_token"; did you mean "max_tokens"?'),
    ({"prompt": 5}, "line {n}: prompt must be text, got 5"),
    ({"prompt": "a", "max_tokens": -1}, "line {n}: max_tokens must be at least 0, got -1"),
    ({"prompt": "a", "top_p": "x"}, "line {n}: top_p must be a finite number, got 'x' (str)"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "line {n}: logit_bias must name tokens by their ids, got 'x'"),
    (
        {"prompt_token_ids": [1, 2.5]},
        "line {n}: prompt_token_ids must be a list of token ids, got 2.5 (float) at place 1",
    ),
    ({"prompt_token_ids": [1, -5]}, "line {n}: prompt_token_ids must be a list of token ids, got -5 (int) at place 1"),
    (
        {"prompt_token_ids": [True, True]},
        "line {n}: prompt_token_ids must be a list of token ids, got True (bool) at place 0",
    ),
    ({"prompt_token_ids": None}, "line {n}: prompt_token_ids must be a list of token ids, got None (NoneType)"),
    ({"prompt": "a", "n": 1_000_000}, "line {n}: n must be at most 1024, got 1000000"),
    ({"prompt": "a", "top_k": 2**63}, f"line {{n}}: top_k must be at most 2**63 - 1, got {2**63}"),
    (
        {"prompt": "a", "temperature": 10**400},
        "line {n}: temperature must be at most 2**63 - 1, got an int of 1329 bits",
    ),
    ('{"prompt": "a", "temperature": 1e400}', "line {n}: the line holds 1e400, which is more than a float64 holds"),
    ('{"prompt": "a", "top_p": NaN}', "line {n}: the line holds NaN, which JSON does not have"),
    (
        {"prompt": "a", "logit_bias": {"5": 10**400}},
        "line {n}: logit_bias of token 5 must be a number from -1e+30 to 1e+30, or -inf, got an int of 1329 bits",
    ),
    (
        {"prompt": "a", "logit_bias": {"9" * 5000: 1}},
        "line {n}: logit_bias must name tokens by their ids, got '999999999999999999999999999999999999"
        "9...99999999999999999999999999999999999999'",
    ),
    (
        {"prompt": "a", "stop": ["x" * 9_000, "y" * 2_000]},
        "line {n}: stop must hold at most 10000 characters in all, got 11000",
    ),
    ({"prompt": "a", "bad_words": ["x"] * 5_000}, "line {n}: bad_words must be at most 4096, got 5000"),
    (
        {"prompt": "a", "stop": [["x"]]},
        "line {n}: stop must be tuple[str, ...], got (['x'],) (tuple)",
    ),
    (
        '{"prompt": "\\ud800"}',
        "line {n}: the line holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    ),
    (
        '{"prompt": "a", "temperature": ' + "[" * 900 + "]" * 900 + "}",
        "line {n}: temperature must be a finite number, got [[[[[...]]]]] (list)",
    ),
    (
        {"prompt_token_ids": [1, 100_000]},
        "line {n}: a prompt's tokens must be at least 0 and below the vocabulary's 429, got 100000",
    ),
    ({"messages": "Hi"}, "line {n}: messages must be a list of objects, each with role and content"),
    ({"messages": [["Hi"]]}, "line {n}: messages must be a list of objects, each with role and content"),
    (
        {"messages": [{"role": "user", "content": "Hi", "images": "a.png"}]},
        "line {n}: the images of a message must be a list of paths, got 'a.png'",
    ),
    ({"messages": [{"role": "user", "content": "Hi", "images": ["gone.png"]}]}, "line {n}: no such picture: gone.png"),
    (
        {"prompt_token_ids": [5] * 600},
        "line {n}: the prompt is 600 tokens long and the model's context holds 512, which leaves no room for an answer",
    ),
]


def test_a_line_that_cannot_be_served_is_an_error_and_the_others_are_answered(generate, vl2):
    good = {"prompt_token_ids": [5, 6, 7], "max_tokens": 2}
    lines = [line for bad, _ in BAD for line in (good, bad)]
    ended, answers = generate(vl2, lines)
    assert ended.code == 1
    assert len({one["text"] for one in answers[::2]}) == 1
    for index, (one, (_, sentence)) in enumerate(zip(answers[1::2], BAD, strict=True)):
        assert one == {"id": 2 * index + 2, "error": sentence.format(n=2 * index + 2)}
    assert f"{len(lines)} lines, {len(BAD)} of them errors, {2 * len(BAD)} tokens in " in ended.err
    assert f"(the first: {BAD[0][1].format(n=2)})" in ended.err


def test_what_a_template_raises_is_its_lines_own(generate, v2, monkeypatch):
    def encode(*given):
        raise TemplateError("conversation roles must alternate")

    monkeypatch.setattr("modelwright.cli.asking.encode_messages", encode)
    good = {"prompt_token_ids": [5, 6, 7], "max_tokens": 2}
    ended, answers = generate(v2, [good, {"messages": [{"role": "user", "content": "Hi"}]}, good])
    assert ended.code == 1 and answers[0]["text"] == answers[2]["text"]
    assert answers[1] == {"id": 2, "error": "line 2: TemplateError: conversation roles must alternate"}


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A model whose scores are beyond float16."""
    folder = write_v2(tmp_path_factory.mktemp("loud"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = 6e4
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_scores_beyond_the_type_end_a_line_and_a_chat_with_status_1(generate, run, loud):
    sentence = "the model's scores of the next token are NaN in float16, so none can be drawn: float16 may not hold "
    lines = [{"prompt_token_ids": [5, 6, 7], "n": 2}, {"prompt_token_ids": []}]
    ended, answers = generate(loud, lines, "--dtype", "float16")
    assert ended.code == 1 and answers[0] == {
        "id": 1,
        "error": f"line 1: {sentence}what the model computes; load it in bfloat16 or float32",
    }
    asked = run("chat", loud, "Hi", "--dtype", "float16")
    assert asked.code == 1 and asked.err.startswith(f"modelwright: {sentence}") and "Traceback" not in asked.err
    assert generate(loud, lines[:1], "--dtype", "bfloat16", "--overwrite")[0].code == 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_line_whose_step_raises_ends_alone(generate, v2, monkeypatch, n):
    """The step that it is in is computed again for the others, who draw what they draw without it."""
    poison, lengths = 61, [12, 4, 9, 7]
    good = [{"prompt_token_ids": ids, "max_tokens": most} for ids, most in zip(IDS, lengths, strict=False)]
    good[1] |= {"temperature": 1.5, "seed": 3, "logprobs": 1}
    good = [line | {"logit_bias": {str(poison): -100.0}, "ignore_eos": True} for line in good]
    _, quiet = generate(v2, good, "--batch-invariant", output="quiet.jsonl")
    forward, raised = Runner._forward, []

    def poisoned(runner, one):
        result = forward(runner, one)
        if poison in one.tokens:
            raised.append(one)
            raise ZeroDivisionError("no such\nluck")
        return result

    monkeypatch.setattr(Runner, "_forward", poisoned)
    first, drawn = {"prompt_token_ids": [5, poison, 7], "n": n}, {"prompt_token_ids": [5, 6], "max_tokens": 5, "n": n}
    lines = [good[0], first, good[1], drawn | {"logit_bias": {str(poison): 100.0}}, *good[2:]]
    ended, answers = generate(v2, lines, "--batch-invariant")
    said = "the model failed: ZeroDivisionError: no such"
    assert [answers[1], answers[3]] == [{"id": number, "error": f"line {number}: {said}"} for number in (2, 4)]
    kept = [answers[place] | {"id": one["id"]} for place, one in zip((0, 2, 4, 5), quiet, strict=True)]
    assert kept == quiet and len(raised) >= 3
    assert (
        ended.code == 1 and "6 lines, 2 of them errors, " in ended.err and f"(the first: line 2: {said})" in ended.err
    )
    assert "Traceback" not in ended.err


def test_a_run_whose_ranks_are_lost_does_not_go_on(generate, v2, monkeypatch):
    def forward(runner, one):
        raise RankLost("rank 1 has ended")

    monkeypatch.setattr(Runner, "_forward", forward)
    ended, answers = generate(v2, [{"prompt_token_ids": [5]}] * 2)
    assert ended.code == 1 and answers == [] and "cannot be reached any more, and so all end" in ended.err


def test_pictures_for_a_model_that_reads_text_only(generate, v2):
    lines = [{"messages": [{"role": "user", "content": "Hi", "images": [str(PICTURE)]}]}]
    ended, (answer,) = generate(v2, lines)
    assert answer["error"].startswith("line 1: ")
    assert ended.code == 1


def test_a_model_of_pictures_reads_and_gives_token_ids(generate, tmp_path, run):
    from tests.cli.test_complete_image import write_imagegpt

    folder = write_imagegpt(tmp_path / "pictures")
    lines = [{"prompt_token_ids": [3, 1], "max_tokens": 4}, {"prompt": "Hi"}]
    ended, answers = generate(folder, lines)
    assert ended.code == 1
    assert len(answers[0]["token_ids"]) == answers[0]["completion_tokens"] == 4
    assert answers[1]["error"] == "line 2: this model's tokens are colours, so it reads prompt_token_ids only"


LINES = [{"prompt_token_ids": ids, "max_tokens": 5} for ids in IDS]


def test_a_second_run_changes_nothing_and_loads_nothing(generate, v2, tmp_path, monkeypatch):
    generate(v2, LINES)
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr("modelwright.cli.terminal.load", lambda *_: pytest.fail("loaded"))
    ended, answers = generate(v2, LINES)
    assert (ended.code, len(answers)) == (0, len(LINES))
    assert ended.err == f"{tmp_path / 'out.jsonl'}: 6 lines, 6 from before\n"
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 40, 200])
def test_a_run_that_was_cut_off_is_continued(generate, v2, tmp_path, kept):
    generate(v2, LINES)
    path = tmp_path / "out.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    ended, _ = generate(v2, LINES)
    assert ended.code == 0
    assert path.read_bytes() == whole


def test_errors_from_before_count_in_the_exit_status(generate, v2):
    generate(v2, ["?", *LINES])
    ended, _ = generate(v2, ["?", *LINES])
    assert ended.code == 1
    assert "7 lines, 7 from before, 1 of them error\n" in ended.err


@pytest.mark.parametrize(
    ("lines", "args"), [([LINES[1], LINES[0]], ()), (LINES[:2], ("--max-tokens", 7)), (LINES[:1], ())]
)
def test_answers_to_something_else_are_refused_and_kept(generate, v2, tmp_path, lines, args):
    generate(v2, LINES[:2])
    before = (tmp_path / "out.jsonl").read_bytes()
    ended, _ = generate(v2, lines, *args)
    assert ended.code == 2
    assert "is not the answer to" in ended.err and ended.err.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before
    ended, answers = generate(v2, lines, *args, "--overwrite")
    assert (ended.code, len(answers)) == (0, len(lines))


def test_ctrl_c_leaves_a_file_that_is_continued(generate, v2, tmp_path, monkeypatch):
    generate(v2, LINES, output="whole.jsonl")
    write = AnswerFile.write

    def write_and_interrupt(self, answer):
        write(self, answer)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerFile, "write", write_and_interrupt)
        ended, answers = generate(v2, LINES, "--max-batch", 1)
    assert ended.code == 130
    assert ended.err.endswith("; the same command goes on from here\n")
    assert 1 <= len(answers) < len(LINES)
    ended, _ = generate(v2, LINES, "--max-batch", 1)
    assert ended.code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_standard_input_and_output(run, v2):
    ended = run("generate", v2, "-i", "-", "-o", "-", stdin="".join(json.dumps(line) + "\n" for line in LINES))
    assert ended.code == 0
    assert [json.loads(line)["id"] for line in ended.out.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert ended.err.startswith("stdout: 6 lines, ")


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_answers_are_the_same_by_each_backend(generate, v2, backend):
    _, usual = generate(v2, LINES)
    ended, answers = generate(v2, LINES, "--backend", backend, "--overwrite")
    assert ended.code == 0 and [answer["text"] for answer in answers] == [answer["text"] for answer in usual]


def test_an_empty_input_gives_an_empty_output(generate, v2):
    ended, answers = generate(v2, [])
    assert (ended.code, answers) == (0, [])
    assert ended.err.endswith("out.jsonl: 0 lines\n")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--max-new-tokens", -1), "--max-new-tokens must be at least 0, got -1"),
        (("--max-batch", 0), "--max-batch must be at least 1, got 0"),
        (("--token-budget", 0), "--token-budget must be at least 1, got 0"),
        (("--host-pages", -1), "--host-pages must be at least 0, got -1"),
        (("--num-pages", -1), "--num-pages must be at least 1, got -1"),
        (("--block-size", 0), "--block-size must be at least 1, got 0"),
        (("--kv-dtype", "fp3"), '--kv-dtype must be one of "auto", "int8"; got "fp3"'),
        (("--backend", "graph"), '--backend must be one of "auto", "eager", "record", "cudagraph"; got "graph"'),
        (("--backend", "cudagraph"), 'backend "cudagraph" needs a model on a cuda device, got one on "cpu"'),
        (("--stop", ""), "--stop must not be empty"),
        (("--max-batch", 9, "--token-budget", 8), "--token-budget (8) must be at least --max-batch (9)"),
        (("--device", "tpu9"), "--device must be one of auto, cpu, cuda, mps, xpu, npu, hpu, mtia, xla; got 'tpu9'"),
        (("--device", "xpu:7"), "--device 'xpu:7' cannot be used here; torch finds cpu only"),
    ],
)
def test_options_that_cannot_be_served(generate, v2, args, sentence):
    ended, answers = generate(v2, LINES, *args)
    assert (ended.code, ended.err, answers) == (2, f"modelwright: {sentence}\n", [])


def test_files_that_cannot_be(run, v2, tmp_path):
    there = tmp_path / "in.jsonl"
    there.write_text("{}\n")
    for source, output, sentence in (
        (tmp_path / "gone", tmp_path / "o", f"--input {tmp_path / 'gone'}: there is no such file"),
        (there, tmp_path, f"--output {tmp_path}: it is a folder, and must be a file"),
        (there, tmp_path / "gone" / "o", f"--output {tmp_path / 'gone' / 'o'}: there is no folder {tmp_path / 'gone'}"),
        (there, there, f"--output {there} must not be the input"),
    ):
        ended = run("generate", v2, "-i", source, "-o", output)
        assert (ended.code, ended.err) == (2, f"modelwright: {sentence}\n")


class Slow:
    """An engine that ends its first request last, and any other in one step."""

    def __init__(self, steps: int):
        self.config, self.tokenizer = self, object()
        self.max_batch, self.steps, self.living, self.most = 1, steps, [], 0

    def add_request(self, prompt, params, *, id):
        self.living.append(id)
        self.most = max(self.most, len(self.living))
        return id

    def step(self):
        self.steps -= 1
        ending = self.living[:1] if self.steps <= 0 else self.living[1:]
        self.living = [id_ for id_ in self.living if id_ not in ending]
        said = Completion(0, "", (1,), FinishReason.LENGTH, None, None)
        return [Update(id_, 0, "", (1,), completion=said) for id_ in ending]


class Read:
    """Reads nothing, refuses every line that says so."""

    params = prompt = None
    picture_bytes, n, logprobs = 0, 1, None

    def __len__(self):
        return 1

    def read(self, line):
        self.params = self.prompt = self
        if line.text == "bad":
            raise RequestError("bad")
        return self


def test_lines_are_read_as_there_is_room_and_written_in_order():
    read, written = 0, []

    def endless():
        nonlocal read
        for read in range(1, 2000):
            yield "bad" if read % 3 == 0 else "good"

    engine, lines = Slow(500), read_lines(endless(), {})
    batch = BatchRun(engine, Read(), written.append)
    for _ in range(400):
        assert batch.step(lines)
        assert read - len(written) <= HELD
    assert (written, engine.most) == ([], AHEAD)
    while batch.step(lines):
        assert read - len(written) <= HELD
    assert [one["id"] for one in written] == list(range(1, 2000))
    assert batch.progress.lines == 1999 and batch.progress.errors == 666


def test_answers_may_be_asked_for_that_no_company_changes(generate, v2):
    lines = [{"prompt_token_ids": ids, "max_tokens": 12} for ids in IDS]
    how = ("--dtype", "bfloat16", "--batch-invariant")
    ended, together = generate(v2, lines, *how)
    assert ended.code == 0
    _, alone = generate(v2, lines, *how, "--max-batch", 1, "--token-budget", 5, "--overwrite")
    assert together == alone
    assert generate(v2, lines, "--dtype", "bfloat16")[0].code == 2  # other answers stand there


def test_an_answer_ends_at_the_generation_configs_ends_and_at_the_tokenizers(generate, v2, tmp_path):
    (said,) = greedy(v2, [[5, 6, 7]], 8)
    end = next(token for token in said.tokens[2:] if token not in said.tokens[:2])
    folder = tmp_path / "two ends"
    shutil.copytree(v2, folder)
    for ends in ([1, end], end):  # 1 is the tokenizer's
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        lines = [{"prompt_token_ids": [5, 6, 7], "max_tokens": 8, "logprobs": 0}]
        lines += [{"prompt_token_ids": [5, 6, 7], "max_tokens": 8, "logit_bias": {"1": 1000}}]
        _, (first, second) = generate(folder, lines, "--overwrite")
        drawn = [token["token_id"] for token in first["logprobs"]]
        assert drawn == list(said.tokens[: said.tokens.index(end) + 1]) and first["finish_reason"] == "stop"
        assert (second["completion_tokens"], second["finish_reason"]) == (1, "stop")


def test_ids_that_are_the_same_and_a_top_p_of_nothing_are_told(run, v2, tmp_path):
    lines = [{"id": "a"}, {"id": 3}, {"top_p": 0.0}, {"id": "a"}, {"id": "a"}]
    asked = [json.dumps({"prompt_token_ids": [5, 6], "max_tokens": 1} | line) for line in lines]
    (tmp_path / "in").write_text("\n".join(asked))
    for _ in range(2):  # also where all is answered already
        ended = run("generate", v2, "-i", tmp_path / "in", "-o", tmp_path / "out")
        assert ended.code == 0
        assert ended.err.splitlines()[1:] == [
            "modelwright: lines 2 and 3 have the same id, 3, and 2 more lines repeat one",
            "modelwright: line 3: top_p 0 leaves the likeliest token alone, whatever the temperature",
        ]

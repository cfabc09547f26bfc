"""``modelwright chat PROMPT`` on tiny random checkpoints: answers, their JSON, boxes, and every refusal's sentence."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from modelwright.cli import chat as chat_module
from modelwright.errors import RequestFailed
from modelwright.serving.answer import Answer
from modelwright.serving.load import load
from tests.checkpoints.tiny import PICTURE, write_v2
from tests.imagegpts import tiny_imagegpt

CUT = "(the answer was cut at 12 tokens; --max-tokens allows more)\n"
BOXES = "<|ref|>the red circle<|/ref|><|det|>[[100, 200, 500, 600], [0, 0, 999, 999], [5, 5, 5, 5]]<|/det|>"


@pytest.fixture
def ask(run, vl2):
    """``ask("words", "--option", ...)`` of the tiny DeepSeek-VL2, with short answers."""
    return lambda *args: run("chat", vl2, *args, "--max-new-tokens", 12)


@pytest.fixture
def says(monkeypatch):
    """Makes every model answer the given text."""

    def install(text: str):
        def answer(engine, prompt, params, emit, stopped):
            emit(text)
            return Answer(text, 3, 0.1, 0.2, 20.0)

        monkeypatch.setattr(chat_module, "answer", answer)

    return install


def refused(ended) -> str:
    """The one sentence of a command that was refused."""
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("modelwright: ")


def expected_text(checkpoint: Path, prompt: str, tokens: int = 12) -> str:
    """The greedy answer as processor and ``generate`` give it."""
    model, processor = load(checkpoint)
    message = {"role": "user", "content": f"<image>\n{prompt}", "images": [PICTURE]}
    batch = processor(conversations=[message])
    del batch["labels"]
    new = model.generate(**batch, max_new_tokens=tokens, do_sample=False)[0, batch["input_ids"].shape[1] :]
    ids = [token for token in new.tolist() if token not in (0, 1, 2)]
    return processor.tokenizer.decode(ids, skip_special_tokens=False).strip()


def test_the_answer_alone_is_printed(ask, vl2):
    ended = ask("What is it?", "--image", PICTURE)
    assert (ended.code, ended.err) == (0, CUT)
    assert ended.out.strip() == expected_text(vl2, "What is it?") != ""


def test_a_question_may_come_from_stdin_in_whole(run, vl2):
    asked = "first line\n\nand a third"
    typed = run("chat", vl2, asked, "--max-new-tokens", 12)
    assert run("chat", vl2, "-", "--max-new-tokens", 12, stdin=asked + "\n") == typed
    nothing = "the prompt is empty: - is stdin, and nothing came from there"
    broken = "what came from stdin is no text in UTF-8"
    for said, reason in {"": nothing, "\n \n": nothing, "a \udcff\n": broken}.items():
        assert refused(run("chat", vl2, "-", stdin=said)) == reason
    assert "only a PROMPT is read from stdin" in refused(run("chat", vl2, "Hi", "--system", "-", stdin=asked))


def test_special_tokens_in_the_prompt_are_special_tokens(ask, vl2):
    words = "<|grounding|>Locate <|ref|>it<|/ref|>."
    ended = ask(words, "--image", PICTURE, "--json")
    loaded = load(vl2)
    tokens = loaded.tokenizer.encode(f"<|User|>: \n{words}\n\n<|Assistant|>:", add_special_tokens=False)
    assert set(loaded.tokenizer.convert_tokens_to_ids(["<|grounding|>", "<|ref|>", "<|/ref|>"])) <= set(tokens)
    assert json.loads(ended.out)["usage"]["prompt_tokens"] == 1 + len(tokens) + 27


def test_json_is_one_object_and_nothing_else(ask, vl2):
    ended = ask("What is it?", "--image", PICTURE, "--json")
    assert ended.err == ""
    answer = json.loads(ended.out)
    assert ended.out.count("\n") == 1
    assert list(answer) == ["text", "finish_reason", "groundings", "usage", "timings"]
    assert answer["text"] == expected_text(vl2, "What is it?")
    assert list(answer["usage"]) == ["prompt_tokens", "image_tokens", "completion_tokens"]
    assert answer["usage"]["image_tokens"] == 27  # 2 x 3 + 1 + the mosaic of 4 x 5, of a picture cut into 2 x 2 tiles
    assert answer["usage"]["prompt_tokens"] > 27
    assert 1 <= answer["usage"]["completion_tokens"] <= 12
    timings = answer["timings"]
    assert list(timings) == ["load_seconds", "first_token_seconds", "total_seconds", "tokens_per_second"]
    assert 0 < timings["first_token_seconds"] <= timings["total_seconds"]


def test_the_slow_path_is_told_in_a_line_by_every_command_that_runs_a_model(run, ask, v2, tmp_path, monkeypatch):
    monkeypatch.setattr("modelwright.ops.backends.cpu.reason", lambda: "there is no C++ compiler")
    line = "modelwright: torch computes instead of the compiled kernels, more slowly: there is no C++ compiler\n"
    assert ask("Hi").err == line + CUT
    (tmp_path / "in.jsonl").write_text('{"prompt_token_ids": [5, 6], "max_tokens": 1}\n')
    assert run("generate", v2, "-i", tmp_path / "in.jsonl", "-o", "-").err.startswith(line + "stdout: 1 line")
    brief = ("--input-len", 4, "--output-len", 1, "--warmup", 0, "--repeats", 1)
    assert run("bench", "latency", v2, *brief).err == line


def test_boxes_are_in_pixels_of_the_picture(ask, says, tmp_path):
    says(BOXES)
    Image.new("RGB", (999, 1998)).save(tmp_path / "tall.png")
    answer = json.loads(ask("Locate it", "--image", tmp_path / "tall.png", "--json").out)
    assert answer["groundings"] == [{"label": "the red circle", "boxes": [[100, 400, 500, 1200], [0, 0, 999, 1998]]}]


def test_boxes_of_a_photo_lie_on_it_as_it_is_seen(ask, says, tmp_path):
    """Stored lying, shown standing: 40 wide and 20 high in the file, 20 wide and 40 high for everybody."""
    says("<|ref|>it<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "white").save(tmp_path / "photo.png", exif=exif)
    target = tmp_path / "drawn.png"
    answer = json.loads(ask("Locate it", "--image", tmp_path / "photo.png", "--draw", target, "--json").out)
    assert answer["groundings"] == [{"label": "it", "boxes": [[0, 0, 20, 20.02]]}]
    assert Image.open(target).size == (20, 40)
    assert Image.open(target).getpixel((10, 35)) == (255, 255, 255) != Image.open(target).getpixel((0, 18))


def test_boxes_without_a_picture_are_only_text(ask, says):
    says(BOXES)
    answer = json.loads(ask("Locate it", "--json").out)
    assert (answer["text"], answer["groundings"]) == (BOXES, [])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_chunks_give_the_same_answer(ask, size):
    whole = ask("What is it?", "--image", PICTURE).out
    assert ask("What is it?", "--image", PICTURE, "--chunk-size", size).out == whole


def test_sampling_repeats_with_its_seed(ask):
    one, again, other = (ask("Hi", "--temperature", 2, "--seed", seed).out for seed in (1, 1, 2))
    assert one == again != other
    assert ask("Hi", "--top-k", 1).out == ask("Hi").out


def test_a_system_text_and_a_repetition_penalty_change_the_prompt_and_the_answer(ask):
    plain = json.loads(ask("Hi", "--json").out)
    told = json.loads(ask("Hi", "--system", "Be brief.", "--json").out)
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert json.loads(ask("Hi", "--repetition-penalty", 9, "--json").out)["text"] != plain["text"]


def test_stats_are_on_stderr(ask):
    ended = ask("What is it?", "--image", PICTURE, "--stats")
    assert ended.out == ask("What is it?", "--image", PICTURE).out
    names = [line.split("  ")[0] for line in ended.err.removeprefix(CUT).splitlines()]
    assert names == ["prompt", "answer", "first token", "peak memory"]
    assert ", 27 of them of pictures, 0 found in the cache" in ended.err
    assert "MiB of the process" in ended.err


def test_text_only_checkpoints_chat_in_their_own_format(run, v2):
    ended = run("chat", v2, "Hello", "--json", "--max-new-tokens", 5)
    tokenizer = load(v2).tokenizer
    ids = tokenizer.encode("<｜begin▁of▁sentence｜>User: Hello\n\nAssistant:", add_special_tokens=False)
    assert json.loads(ended.out)["usage"]["prompt_tokens"] == len(ids)
    assert (
        run("chat", v2, "Hello", "--max-new-tokens", 5, "--chunk-size", 3).out.strip() == json.loads(ended.out)["text"]
    )
    assert run("chat", v2, "What does <image> mean?", "--max-new-tokens", 1).code == 0  # words, to this model


def test_a_chat_template_of_the_tokenizer_comes_first(run, tmp_path):
    folder = write_v2(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = "{{ messages[0].content }}{% if add_generation_prompt %}!{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    ended = run("chat", folder, "Hello", "--json", "--max-new-tokens", 1)
    length = len(load(folder).tokenizer.encode("Hello!", add_special_tokens=False))
    assert json.loads(ended.out)["usage"]["prompt_tokens"] == length


def test_new_tokens_stop_at_the_end_of_the_context(run, tmp_path):
    folder = write_v2(tmp_path, max_position_embeddings=20, eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    usage = json.loads(run("chat", folder, "Hi", "--json").out)["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 20


def test_the_boxes_are_drawn(ask, says, tmp_path):
    says(BOXES)
    target = tmp_path / "out.png"
    ended = ask("Locate it", "--image", PICTURE, "--draw", target)
    assert ended.out == BOXES + "\n"
    assert ended.err.splitlines() == [
        "skipped '[5, 5, 5, 5]': x1 must be less than x2, and y1 less than y2",
        f"2 boxes drawn in {target}",
    ]
    before, after = Image.open(PICTURE).convert("RGB"), Image.open(target)
    assert after.size == before.size
    assert after.tobytes() != before.tobytes()


def test_of_several_pictures_the_last_is_drawn_on(ask, says, tmp_path):
    says(BOXES)
    first, target = tmp_path / "first.png", tmp_path / "out.png"
    Image.new("RGB", (30, 90)).save(first)
    ask("Compare", "--image", first, "--image", PICTURE, "--draw", target)
    assert Image.open(target).size == Image.open(PICTURE).size


def test_nothing_to_draw_says_so(ask, says, tmp_path):
    says("There is none.")
    target = tmp_path / "out.png"
    ended = ask("Locate it", "--image", PICTURE, "--draw", target)
    assert ended.code == 0
    assert ended.err == f"nothing to draw: the answer holds no boxes, so {target} was not written\n"
    assert not target.exists()


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("out", "the name must end like a picture's, for example .png or .jpg"),
        ("out.txt", "the name must end like a picture's, for example .png or .jpg"),
        ("gone/out.png", "there is no folder {folder}/gone"),
        ("folder.png", "it is a folder, and must be a file"),
    ],
)
def test_a_drawing_that_cannot_be_written_is_refused_at_once(ask, tmp_path, target, sentence):
    (tmp_path / "folder.png").mkdir()
    ended = ask("Locate it", "--image", PICTURE, "--draw", tmp_path / target)
    assert refused(ended) == f"--draw {tmp_path / target}: {sentence.format(folder=tmp_path)}"


def test_a_missing_picture(ask, tmp_path):
    assert refused(ask("Hi", "--image", tmp_path / "gone.png")) == f"no such picture: {tmp_path / 'gone.png'}"


def test_a_file_that_is_no_picture(ask, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("a shopping list")
    assert refused(ask("Hi", "--image", path)) == f"{path} is not a picture that can be read"


def test_a_huge_picture_is_refused_from_its_header(ask, tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_of_nothing(13000, 13000))
    assert path.stat().st_size < 20_000
    assert "is too large: 13000 x 13000 = 169000000 pixels, at most 89478485" in refused(ask("Hi", "--image", path))


def png_of_nothing(width: int, height: int) -> bytes:
    """A PNG whose header promises black and white pixels that its data does not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("prompt", "pictures", "counts"),
    [
        ("<image> and what?", 2, "1 <image> placeholder but 2 pictures"),
        ("<image> <image> what?", 1, "2 <image> placeholders but 1 picture"),
        ("<image> what?", 0, "1 <image> placeholder but 0 pictures"),
    ],
)
def test_placeholders_and_pictures_that_differ_in_number(ask, prompt, pictures, counts):
    ended = ask(prompt, *["--image", PICTURE] * pictures)
    assert refused(ended) == f"the prompt: {counts}; there must be as many of one as of the other"


def test_placeholders_say_where_the_pictures_go(ask):
    here = ask("Look: <image>\nwhat?", "--image", PICTURE, "--json")
    assert json.loads(here.out)["usage"]["image_tokens"] == 27


def test_an_unknown_model_type(run, vl2, tmp_path):
    folder = shutil.copytree(vl2, tmp_path / "copy")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    sentence = "model_type 'gpt2' is not served; we have deepseek_v2, deepseek_vl_v2, imagegpt, llama, mistral, qwen2"
    assert refused(run("chat", folder, "Hi")) == sentence


def test_a_folder_without_weights(run, vl2, tmp_path):
    folder = shutil.copytree(vl2, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    assert refused(run("chat", folder, "Hi")).startswith(f"{folder} holds no weights")


def test_a_folder_that_is_not_there(run, tmp_path):
    missing = tmp_path / "gone"
    assert refused(run("chat", missing, "Hi")) == f"{missing} is not a folder and not a hub id"
    (tmp_path / "llama-final").mkdir()
    near = f"{tmp_path / 'llama-fnal'} is not a folder and not a hub id; did you mean {tmp_path / 'llama-final'}?"
    assert refused(run("chat", tmp_path / "llama-fnal")) == near


@pytest.mark.parametrize("name", ["vl2-nan", "vl2nano", "VL2-NANO", "vl2_nano"])
def test_a_misspelt_model_is_no_question(run, name):
    assert refused(run("chat", name)) == (
        f"{name!r} is no name from `modelwright models` (imagegpt-nano, vl2-nano), no folder or file here, and no hub "
        "id like org/name; did you mean vl2-nano?"
    )


def test_a_text_only_model_given_a_picture(run, v2):
    ended = run("chat", v2, "Hi", "--image", PICTURE)
    assert refused(ended) == f"{v2} is a deepseek_v2 model, which reads text only, and it was given 1 picture"


def test_a_prompt_longer_than_the_context(ask):
    sentence = refused(ask("word " * 200))
    assert sentence == (
        "the prompt is 1007 tokens long and the model's context holds 512, which leaves no room for an answer"
    )


def test_a_wrong_device_or_dtype(ask):
    assert refused(ask("Hi", "--device", "xpu:7")).startswith("--device 'xpu:7' cannot be used here; torch finds cpu")
    assert refused(ask("Hi", "--device", "cdua")).endswith("got 'cdua'; did you mean cuda?")
    assert refused(ask("Hi", "--device", "cuda:one")).startswith("--device must have a number behind its colon")
    assert refused(ask("Hi", "--dtype", "int8")).startswith("--dtype must be one of auto, float32")


def test_a_model_without_a_head_cannot_chat(run, vl2, v2, tmp_path):
    from modelwright.families.deepseek_v2.model import DeepseekV2Model

    folder = shutil.copytree(v2, tmp_path / "copy")
    DeepseekV2Model.from_pretrained(v2).save_pretrained(folder)
    assert refused(run("chat", folder, "Hi")) == f"{folder} is a DeepseekV2Model, which cannot chat"


def test_a_model_of_pictures_cannot_chat(run, tmp_path):
    folder = tmp_path
    tiny_imagegpt().save_pretrained(folder)
    sentence = f"{folder} continues pictures and cannot chat: that is `modelwright complete-image`"
    assert refused(run("chat", folder, "Hi")) == sentence


def test_an_answer_cut_at_its_length_says_so(run, ask, v2):
    ended = run("chat", v2, "Hi", "--max-tokens", 1)
    assert ended.err == "(the answer was cut at 1 token; --max-tokens allows more)\n"
    ended = run("chat", v2, "Hi", "--max-tokens", 1, "--json")
    assert (json.loads(ended.out)["finish_reason"], ended.err) == ("length", "")
    ended = run("chat", v2, "Hi", "--max-context", 16)
    assert ended.err == "(the answer was cut at 1 token: the context of 16 tokens is full)\n"


def test_a_session_ends_with_status_1_where_an_answer_could_not_be_finished(run, v2, monkeypatch):
    def fail(*_, **__):
        raise RequestFailed("the scores are no numbers")

    monkeypatch.setattr(chat_module, "answer", fail)
    ended = run("chat", v2, stdin="Hi\n/nothing\n")
    assert ended.code == 1
    assert ended.err.splitlines()[0] == "modelwright: the scores are no numbers"


def test_an_animated_picture_is_told(ask, tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    ended = ask("What is it?", "--image", tmp_path / "a.gif", "--json")
    assert ended.code == 0
    assert ended.err == f"modelwright: {tmp_path / 'a.gif'} is animated; the first of its 2 frames is shown\n"


def test_a_picture_on_the_network_is_called_as_it_was_typed(ask):
    assert refused(ask("Hi", "--image", "http://host/a.png")).startswith(
        "pictures are not fetched from the network (http://host/a.png)"
    )

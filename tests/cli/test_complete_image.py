"""``modelwright complete-image`` on tiny random ImageGPTs: the sheet and the JSON, with torch or not, and refusals."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from modelwright.cli import complete_image as command
from modelwright.cli.complete_image_options import CompleteImageOptions, kept_rows
from modelwright.cli.still import cut_middle
from modelwright.engine.complete import complete
from modelwright.errors import RequestError
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling, ImageGPTModel
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from modelwright.processing import Pixels
from modelwright.processing.contact_sheet import contact_sheet

SIDE = 6
OPTIONS = "keep samples output temperature top-p top-k seed onnx dtype device json stats"
CORNERS = [[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)]


def write_imagegpt(folder: Path, size=SIDE, **settings) -> Path:
    """A random ImageGPT of eight colours, whose choices differ enough to be told apart."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "n_positions": SIDE * SIDE, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = ImageGPTConfig(**sizes | settings, initializer_range=0.5)
    ImageGPTForCausalImageModeling(config).save_pretrained(folder)
    ImageGPTImageProcessor(clusters=CORNERS, size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> Path:
    return write_imagegpt(tmp_path_factory.mktemp("imagegpt"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """24 x 12 pixels: the outer quarters white, the middle half black above and red below."""
    image = Image.new("RGB", (24, 12), "white")
    image.paste("black", (6, 0, 18, 6))
    image.paste("red", (6, 6, 18, 12))
    path = tmp_path_factory.mktemp("pictures") / "in.png"
    image.save(path)
    return path


@pytest.fixture
def sheet(tmp_path) -> Path:
    return tmp_path / "out.png"


@pytest.fixture
def sample(run, nano, sheet):
    """``sample(picture, "--option", ...)`` with the tiny model, the sheet at ``sheet``."""
    return lambda *args: run("complete-image", "--model", nano, "-o", sheet, *args)


def refused(ended) -> str:
    """The one sentence of a command that was refused."""
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    return lines[0].removeprefix("modelwright: ")


def test_the_sheet_shows_the_picture_what_was_kept_and_the_samples(sample, nano, picture, sheet):
    ended = sample(picture, "--seed", 3, "-n", 5)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{sheet}: 5 samples of 6 x 6 pixels, 3 of 6 rows kept, seed 3\n"
    model = ImageGPTForCausalImageModeling.from_pretrained(nano)
    pixels = Pixels.from_folder(nano)
    original = [0] * 18 + [4] * 18  # the middle square: black above, red below
    given = torch.tensor([[8, *original[:18]]] * 5)
    rows = complete(model, given, 18, seed=3)[:, 1:].numpy()
    assert len({row.tobytes() for row in rows}) > 1
    expected = contact_sheet(pixels.decode(rows), pixels.decode(original)[0], 3)
    written = Image.open(sheet)
    assert written.format == "PNG"
    assert written.tobytes() == expected.tobytes()


def test_json_is_one_object_with_the_samples(sample, picture, sheet):
    ended = sample(picture, "--json", "--seed", 1, "--keep", 0.6)
    assert (ended.err, ended.out.count("\n")) == ("", 1)
    told = json.loads(ended.out)
    assert list(told) == ["output", "seed", "size", "kept_rows", "samples", "usage", "timings"]
    assert (told["output"], told["seed"], told["kept_rows"]) == (str(sheet), 1, 4)
    assert told["size"] == {"height": 6, "width": 6}
    assert [row[:24] for row in told["samples"]] == [[0] * 18 + [4] * 6] * 4
    assert {len(row) for row in told["samples"]} == {36}
    assert all(0 <= colour < 8 for row in told["samples"] for colour in row)
    assert told["usage"] == {"prompt_tokens": 25, "completion_tokens": 48}
    assert all(seconds > 0 for seconds in told["timings"].values())


def test_a_seed_repeats_the_sheet_byte_for_byte(sample, picture, sheet):
    sheets = []
    for seed in (1, 1, 2):
        sample(picture, "--seed", seed)
        sheets.append(sheet.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_a_seed_that_was_drawn_is_told_and_repeats_it(sample, picture):
    first = json.loads(sample(picture, "--json").out)
    assert json.loads(sample(picture, "--json").out)["seed"] != first["seed"]
    assert json.loads(sample(picture, "--json", "--seed", first["seed"]).out)["samples"] == first["samples"]


def test_without_heat_or_choice_all_samples_are_the_likeliest(sample, nano, picture):
    cold = json.loads(sample(picture, "--json", "--temperature", 0).out)["samples"]
    assert cold == [cold[0]] * 4
    model = ImageGPTForCausalImageModeling.from_pretrained(nano)
    made = model.generate(torch.tensor([[8, *cold[0][:18]]]), max_new_tokens=18, do_sample=False)
    assert made[0, 1:].tolist() == cold[0]
    for option, value in (("--top-k", 1), ("--top-p", 1e-9)):
        assert json.loads(sample(picture, "--json", option, value, "--temperature", 3).out)["samples"] == cold


def test_nothing_kept_needs_no_picture(sample, sheet):
    told = json.loads(sample("--keep", 0, "--json", "--seed", 0, "-n", 2).out)
    assert (told["kept_rows"], told["usage"]["prompt_tokens"]) == (0, 1)
    assert Image.open(sheet).size == (2 * 168 + 10, 158 + 16 + 20)  # two samples, no first column


def test_nothing_kept_of_a_picture_still_shows_it(sample, picture, sheet):
    without = json.loads(sample("--keep", 0, "--json", "--seed", 0).out)["samples"]
    assert json.loads(sample(picture, "--keep", 0, "--json", "--seed", 0).out)["samples"] == without
    assert Image.open(sheet).getpixel((20, 20)) == (0, 0, 0)


def test_stats_are_on_stderr(sample, picture):
    ended = sample(picture, "--stats", "-n", 1)
    assert ": 1 sample of 6 x 6 pixels" in ended.out
    lines = ended.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["kept", "sampled", "speed", "peak memory"]
    assert "18 pixels of each picture" in lines[0] and "18 pixels in" in lines[1] and "MiB of the process" in lines[3]


def test_a_model_in_another_number_type(sample, picture):
    assert sample(picture, "--dtype", "bfloat16").code == 0
    assert refused(sample(picture, "--dtype", "int8")).startswith("--dtype must be one of auto, float32")
    assert refused(sample(picture, "--device", "xpu:7")).startswith("--device 'xpu:7' cannot be used here; torch finds")


def test_a_bar_is_drawn_where_stderr_is_a_terminal(sample, picture, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(command, "errors", terminal)
    assert sample(picture).code == 0
    assert "sampling pixels" in terminal.file.getvalue() and "18/18" in terminal.file.getvalue()


def test_ctrl_c_leaves_nothing_behind(sample, picture, sheet, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_complete", interrupt)
    ended = sample(picture)
    assert (ended.code, ended.out, ended.err) == (130, "", f"(stopped, {sheet} was not written)\n")
    assert not sheet.exists()


def test_a_size_smaller_than_the_context_and_not_square(run, picture, tmp_path):
    folder = write_imagegpt(tmp_path / "wide", size={"height": 2, "width": 4})
    told = json.loads(run("complete-image", picture, "--model", folder, "-o", tmp_path / "o.png", "--json").out)
    assert told["kept_rows"] == 1
    assert {len(row) for row in told["samples"]} == {8}
    assert told["samples"][0][:4] == [7, 0, 0, 7]  # 24 x 12 has the model's shape: nothing is cut


@pytest.mark.parametrize(
    ("keep", "height", "rows"),
    [(0, 16, 0), (0.5, 16, 8), (0.5, 5, 3), (0.49, 5, 2), (0.01, 16, 0), (0.999, 16, 15), (0.5, 1, 0)],
)
def test_rows_kept_are_the_nearest_and_never_all(keep, height, rows):
    assert kept_rows(keep, height) == rows


@pytest.mark.parametrize(
    ("size", "shape", "left"),
    [
        ((24, 12), (6, 6), (12, 12)),
        ((10, 30), (4, 4), (10, 10)),
        ((30, 30), (6, 3), (30, 15)),
        ((1, 8), (9, 9), (1, 1)),
    ],
)
def test_the_middle_is_cut_to_the_models_shape(size, shape, left):
    image = Image.effect_noise(size, 50)
    cut = cut_middle(image, "it", *shape)
    assert cut.size == left
    start = (size[0] - left[0]) // 2, (size[1] - left[1]) // 2
    assert cut.getpixel((0, 0)) == image.getpixel(start)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--keep", 1), "--keep must be at least 0 and below 1, got 1.0"),
        (("--keep", -0.1), "--keep must be at least 0 and below 1, got -0.1"),
        (("--keep", "nan"), "--keep must be at least 0 and below 1, got nan"),
        (("-n", 0), "--samples must be at least 1, got 0"),
        (("--temperature", -1), "--temperature must be at least 0, got -1.0"),
        (("--top-p", 1.5), "--top-p must be from 0 to 1, got 1.5"),
        (("--top-k", -2), "--top-k must be at least -1, got -2"),
        (("--seed", -1), "--seed must be from 0 to 2**63 - 1, got -1"),
        (("--onnx", "somewhere"), "--onnx somewhere fixes the model, its numbers and its device: leave out --model"),
    ],
)
def test_an_option_out_of_its_range(sample, picture, args, sentence):
    assert refused(sample(picture, *args)) == sentence


def test_wrong_options_are_refused_before_anything_heavy_is_imported():
    done = in_a_new_process("complete-image")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "modelwright: --keep 0.5 needs a PICTURE to keep the top of; --keep 0 does without",
        "imported:",
    ]


def test_help_imports_nothing_heavy():
    done = in_a_new_process("complete-image", "--help")
    assert (done.returncode, done.stderr.strip()) == (0, "imported:")
    for option in OPTIONS.split():
        assert f"--{option}" in done.stdout
    assert "MODEL" in done.stdout and "--model" not in done.stdout


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("out", "the name must end in .png"),
        ("out.jpg", "the name must end in .png"),
        ("gone/out.png", "there is no folder {folder}/gone"),
        ("folder.png", "it is a folder, and must be a file"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_refused_at_once(run, tmp_path, target, sentence):
    (tmp_path / "folder.png").mkdir()
    ended = run("complete-image", "--keep", 0, "-o", tmp_path / target)
    assert refused(ended) == f"--output {tmp_path / target}: {sentence.format(folder=tmp_path)}"


@pytest.mark.slow
def test_stdout_holds_the_picture_alone_also_of_a_file_whose_name_is_no_text(nano, picture, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(picture, odd)
    line = [sys.executable, "-m", "modelwright", "complete-image", nano, odd, "-n", "1", "-o", "/dev/stdout"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, capture_output=True, timeout=600, env=paths)
    assert done.returncode == 0 and done.stderr.startswith(b"/dev/stdout: 1 sample of ")
    Image.open(io.BytesIO(done.stdout)).verify()
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


def test_the_picture_itself_is_not_overwritten(run, nano, picture):
    before = picture.read_bytes()
    ended = run("complete-image", picture, "--model", nano, "-o", picture)
    assert refused(ended) == f"--output {picture} is the PICTURE itself, which would be lost"
    assert picture.read_bytes() == before


def odd_picture(kind: str, path: Path) -> Path:
    """A file of one of the kinds that cannot be completed."""
    noise = Image.effect_noise((64, 64), 90)
    if kind == "words":
        path.write_text("a shopping list")
    elif kind == "truncated":
        noise.save(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "huge":
        path.write_bytes(png_header(13000, 13000))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no pixels":
        path.write_bytes(png_header(0, 7))
    elif kind == "sliver":
        Image.new("RGB", (900, 100)).save(path)
    elif kind == "animated":
        noise.save(
            path, format="GIF", save_all=True, append_images=[Image.new("L", (64, 64), grey) for grey in (0, 255)]
        )
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises black and white pixels that its data does not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "no such picture: {path}"),
        ("words", "{path} is not a picture that can be read"),
        ("empty", "{path} is not a picture that can be read"),
        ("truncated", "{path} is damaged or cut short: "),
        ("huge", "{path} is too large: 13000 x 13000 = 169000000 pixels, at most "),
        ("no pixels", "{path} is not a picture that can be read"),
        ("sliver", "{path} is 900 x 100 pixels: cut to the model's shape, 6 to 6, 11.1% of it would be left, and "),
        ("animated", "{path} is animated, 3 frames; one still picture is completed"),
    ],
)
def test_an_odd_picture_is_refused_with_a_sentence(sample, sheet, tmp_path, kind, sentence):
    path = odd_picture(kind, tmp_path / "odd.png")
    assert refused(sample(path)).startswith(sentence.format(path=path))
    assert not sheet.exists()


def test_the_model_comes_first_and_may_be_left_out():
    def asked(*words, **named):
        options = CompleteImageOptions(*words, **named)
        return options.model, options.picture

    assert asked("imagegpt-nano", "a.png") == ("imagegpt-nano", Path("a.png"))
    assert asked("a.png") == (None, Path("a.png"))
    assert asked("my photos/a b") == (None, Path("my photos/a b"))
    assert asked("org/name") == ("org/name", None)
    assert asked("imagegpt-nan") == ("imagegpt-nan", None)
    assert asked() == (None, None)
    assert asked("a.png", old_model="org/name") == ("org/name", Path("a.png"))
    with pytest.raises(RequestError, match="named twice"):
        CompleteImageOptions("a", "b.png", old_model="c").check()


def test_a_model_that_cannot_complete_pictures(run, nano, v2, tmp_path):
    at = ("--keep", 0, "-o", tmp_path / "out.png", "--model")
    assert refused(run("complete-image", *at, v2)) == (
        f"{v2} is of class DeepseekV2ForCausalLM, which cannot complete pictures; ImageGPTForCausalImageModeling can"
    )
    headless = shutil.copytree(nano, tmp_path / "headless")
    ImageGPTModel.from_pretrained(nano).save_pretrained(headless)
    assert "is of class ImageGPTModel, which cannot complete pictures" in refused(run("complete-image", *at, headless))
    assert "is of class DeepseekVLV2ForCausalLM, which cannot" in refused(run("complete-image", *at, "vl2-nano"))
    assert refused(run("complete-image", *at, tmp_path / "gone")).endswith("is not a folder and not a hub id")
    bare = shutil.copytree(nano, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert refused(run("complete-image", *at, bare)).startswith(f"{bare} has no preprocessor_config.json")


def test_a_palette_or_size_that_does_not_fit_the_model(run, tmp_path):
    at = ("--keep", 0, "-o", tmp_path / "out.png", "--model")
    folder = write_imagegpt(tmp_path / "model", size={"height": 6, "width": 7})
    assert refused(run("complete-image", *at, folder)) == (
        f"{folder}: size 6 x 7 has 42 pixels and must have at most n_positions (36)"
    )
    ImageGPTImageProcessor(clusters=CORNERS[:7], size=6).save_pretrained(folder)
    assert refused(run("complete-image", *at, folder)) == (
        f"{folder}: clusters holds 7 colours and must hold vocab_size - 1 (8)"
    )
    ImageGPTImageProcessor(size=6).save_pretrained(folder)
    assert refused(run("complete-image", *at, folder)).startswith("clusters must hold a palette [k, 3]")


def in_a_new_process(*args) -> subprocess.CompletedProcess[str]:
    """The command line in a fresh interpreter, which then says on stderr which heavy packages it imported."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; sys.argv = ['modelwright', *{[str(arg) for arg in args]!r}]\n"
        "import atexit\n"
        "heavy = ('torch', 'transformers', 'onnxruntime', 'PIL', 'numpy')\n"
        "atexit.register(lambda: print('imported:', *[n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        "from modelwright.cli.main import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def exported(nano, tmp_path_factory) -> Path:
    from modelwright.export import export_onnx

    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_onnx(nano, folder, draws=1)
    return folder


@pytest.mark.slow
def test_onnxruntime_draws_what_torch_draws_without_importing_it(sample, exported, picture, tmp_path):
    out = tmp_path / "onnx.png"
    done = in_a_new_process("complete-image", picture, "--onnx", exported, "--temperature", 0, "-o", out, "--json")
    assert (done.returncode, done.stderr.split()) == (0, ["imported:", "onnxruntime", "PIL", "numpy"])
    told = json.loads(done.stdout)
    assert told["samples"] == json.loads(sample(picture, "--temperature", 0, "--json").out)["samples"]
    assert np.asarray(Image.open(out)).shape == (2 * 184 + 10, 3 * 168 + 10, 3)


@pytest.mark.slow
def test_onnxruntime_repeats_a_seed(run, exported, picture, tmp_path):
    sheets = []
    for seed in (1, 1, 2):
        run("complete-image", picture, "--onnx", exported, "--seed", seed, "-o", tmp_path / "out.png")
        sheets.append((tmp_path / "out.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_a_folder_that_is_no_export(run, nano, tmp_path):
    at = ("--keep", 0, "-o", tmp_path / "out.png", "--onnx")
    assert "has no modelwright_onnx.json" in refused(run("complete-image", *at, nano))
    assert (
        refused(run("complete-image", *at, tmp_path / "gone")) == f"--onnx {tmp_path / 'gone'}: there is no such folder"
    )

"""The model in the package: its folder, its size, and a few plain questions about the pictures in ``examples``."""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from modelwright import load, parse_grounding, zoo
from modelwright.processing import load_image

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
OFFICIAL_TOKENS = [
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
]
TASKS = {"colour", "shape", "count", "reading", "grounding", "absent", "spatial", "describe", "follow_up", "pair"}
GOALS = {"colour": 0.95, "shape": 0.95, "count": 0.90, "reading": 0.85, "grounding": 0.85, "absent": 0.90}


@pytest.fixture(scope="module")
def loaded():
    return load(zoo.path("vl2-nano"), device="cpu")


@pytest.fixture(scope="module")
def ask(loaded):
    """``ask("question", "shapes")``: the greedy answer about pictures of ``examples``, grounding tokens kept."""
    model, processor = loaded

    def answer(question: str, *names: str) -> str:
        content = "<image>\n" * len(names) + question
        message = {"role": "user", "content": content, "images": [PICTURES / f"{name}.png" for name in names]}
        batch = processor(conversations=[message])
        del batch["labels"]
        tokens = model.generate(**batch, max_new_tokens=96, do_sample=False)[0, batch["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(tokens, skip_special_tokens=False)
        return text.split(processor.tokenizer.eos_token)[0].strip()

    return answer


def test_the_folder_is_in_the_official_layout():
    folder = zoo.path("vl2-nano")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "accuracy.json"):
        assert (folder / name).is_file(), name
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["model_type"] == "deepseek_vl_v2"
    assert config["architectures"] == ["DeepseekVLV2ForCausalLM"]
    assert set(config) >= {"vision_config", "projector_config", "language_config", "candidate_resolutions"}


def test_the_weights_are_bfloat16_and_small():
    model = zoo.describe("vl2-nano")
    assert model.weight_bytes <= 12_000_000
    with safe_open(zoo.path("vl2-nano") / "model.safetensors", framework="pt") as tensors:
        types = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        names = set(tensors.keys())
    assert types <= {"BF16", "F32"}  # a router's correction bias stays F32
    assert 2 * model.parameters <= model.weight_bytes <= 2.2 * model.parameters
    assert any(".experts.0." in name for name in names)
    assert any("kv_a_proj_with_mqa" in name for name in names)
    assert {"image_newline", "view_seperator"} <= names


def test_the_whole_architecture_is_there(loaded):
    config = loaded.model.config
    assert config.language_config.use_mla
    assert config.language_config.n_routed_experts > 1
    assert len(config.candidate_resolutions) > 1
    assert [list(size) for size in config.candidate_resolutions] == loaded.processor.candidate_resolutions


def test_the_tokenizer_has_the_official_special_tokens(loaded):
    known = loaded.tokenizer.get_vocab()
    for token in OFFICIAL_TOKENS:
        assert loaded.tokenizer.encode(token, add_special_tokens=False) == [known[token]], token
    assert max(known.values()) < loaded.model.config.language_config.vocab_size


def test_any_text_survives_the_tokenizer(loaded):
    for text in ("Read the text: B7X2.", "鸟 naïve\t\n  ☕"):
        assert loaded.tokenizer.decode(loaded.tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_accuracy_beside_the_weights_is_measured_on_every_task():
    measured = json.loads((zoo.path("vl2-nano") / "accuracy.json").read_text("utf-8"))
    assert measured["accuracy"].keys() == TASKS
    assert measured["questions_per_task"] >= 200
    assert zoo.describe("vl2-nano").accuracy == measured["accuracy"]


def test_the_measured_accuracy_meets_the_goals_it_is_said_to_meet():
    measured = json.loads((zoo.path("vl2-nano") / "accuracy.json").read_text("utf-8"))["accuracy"]
    missed = {task: measured[task] for task, goal in GOALS.items() if measured[task] < goal}
    assert missed == {}


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("How many shapes are there?", ("4", "four")),
        ("What colour is the star?", ("blue",)),
        ("What shape is the red object?", ("circle",)),
        ("What shape is the yellow object?", ("triangle",)),
    ],
)
def test_it_answers_about_the_shapes(ask, question, words):
    answer = ask(question, "shapes").lower()
    assert any(word in answer for word in words), answer


def test_it_says_so_when_the_object_is_not_there(ask):
    answer = ask("What is left of the purple triangle?", "shapes").lower()
    assert re.search(r"\b(no|not|none|nothing|isn't)\b", answer), answer


def test_it_boxes_the_red_circle(ask):
    answer = ask("<|grounding|>Locate <|ref|>the red circle<|/ref|>.", "shapes")
    size = load_image(PICTURES / "shapes.png").size
    [found] = parse_grounding(answer, size)
    [box] = found.boxes
    assert overlap(box, (40, 44, 146, 150)) >= 0.5, box


def test_it_reads_the_card(ask):
    assert ask("Read the text.", "card") == "B7X2"


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Area of the intersection over that of the union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def test_the_readme_says_what_was_measured():
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    table = readme.partition("<!-- accuracy table: begin -->")[2].partition("<!-- accuracy table: end -->")[0]
    said = [float(line.split("|")[2].strip(" %")) for line in table.splitlines() if "%" in line]
    measured = json.loads((zoo.path("vl2-nano") / "accuracy.json").read_text())["accuracy"]
    assert [f"{share:.1f}" for share in said] == [f"{100 * share:.1f}" for share in measured.values()]

"""The ImageGPT in the package: its folder, its size, and both of its claims on a few fresh pictures."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from modelwright import load, zoo
from recipes.imagegpt_nano.baselines import bits_of_table, positions
from recipes.imagegpt_nano.draw import PIXELS, SIDE, draw_labels, draw_pictures, join_halves
from recipes.imagegpt_nano.evaluate import bits_of_model, completions
from recipes.imagegpt_nano.judge import load_judge
from recipes.imagegpt_nano.palette import COLOURS

SEED = 77_000_000  # neither training, nor the judge, nor the measurement
COMPLETED, OF_THE_HISTOGRAM = 0.9, 0.1
"""What is claimed: at least this share of completed digits, at most this part of the histogram's bits."""


@pytest.fixture(scope="module")
def loaded():
    return load(zoo.path("imagegpt-nano"), device="cpu")


@pytest.fixture(scope="module")
def measured():
    return json.loads((zoo.path("imagegpt-nano") / "accuracy.json").read_text("utf-8"))


def test_the_folder_is_in_the_official_layout():
    folder = zoo.path("imagegpt-nano")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["model_type"] == "imagegpt"
    assert config["architectures"] == ["ImageGPTForCausalImageModeling"]
    assert config["vocab_size"] == len(COLOURS) + 1 and config["n_positions"] == PIXELS
    for name in ("preprocessor_config.json", "generation_config.json", "accuracy.json", "README.md"):
        assert (folder / name).is_file(), name


def test_the_weights_are_bfloat16_and_below_three_megabytes():
    model = zoo.describe("imagegpt-nano")
    assert 2 * model.parameters <= model.weight_bytes <= 3_000_000
    with safe_open(zoo.path("imagegpt-nano") / "model.safetensors", framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_its_palette_is_the_one_that_pictures_are_drawn_in(loaded):
    assert loaded.processor.size == {"height": SIDE, "width": SIDE}
    np.testing.assert_array_equal(loaded.processor.settings.colours(), COLOURS)


def test_transformers_computes_the_same_from_the_folder(loaded):
    folder = zoo.path("imagegpt-nano")
    # Reordered: the other way of transformers 5.17 divides by int(sqrt(24)), which is 4, where a head is 24 wide.
    how = {"dtype": torch.float32, "reorder_and_upcast_attn": True}
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder, **how).eval()
    tokens = torch.from_numpy(draw_pictures(np.random.default_rng(SEED), 2).tokens)
    with torch.no_grad():
        ours = loaded.model(tokens).logits
        torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-4, rtol=1e-4)


def test_the_file_says_what_is_claimed(measured):
    assert measured["accuracy"] == zoo.describe("imagegpt-nano").accuracy
    assert measured["accuracy"]["completed_digits"] >= COMPLETED
    bits = measured["bits_per_pixel"]
    assert bits["model"] < OF_THE_HISTOGRAM * bits["histogram"]
    assert bits["model"] < bits["neighbours"] < bits["histogram"]


@pytest.mark.slow
def test_fresh_pictures_take_few_bits_of_what_the_histogram_takes(loaded):
    known = draw_pictures(np.random.default_rng(SEED + 1), 500).tokens
    fresh = draw_pictures(np.random.default_rng(SEED + 2), 40).tokens
    histogram = bits_of_table(known, positions(known), fresh, positions(fresh))
    assert bits_of_model(loaded.model, fresh, batch=20) < OF_THE_HISTOGRAM * histogram


@pytest.mark.slow
def test_most_completed_digits_are_those_whose_upper_half_was_given(loaded):
    true = draw_labels(np.random.default_rng(SEED + 3), np.arange(40) % 10)
    judge = load_judge()
    completed = completions(loaded.model, true.tokens, batch=40, seed=0)
    np.testing.assert_array_equal(join_halves(true.tokens, completed), completed)
    assert (judge.labels(completed) == true.labels).mean() >= COMPLETED - 0.15  # of 40: two and a half deviations
    assert (judge.labels(np.roll(completed, 1, axis=0)) == true.labels).mean() < 0.2


@pytest.mark.slow
def test_pictures_from_nothing_are_mostly_things_it_knows(loaded):
    nothing = np.zeros((20, PIXELS), np.int64)
    sampled = completions(loaded.model, nothing, batch=20, seed=0, kept=0)
    assert len(np.unique(sampled, axis=0)) == 20
    assert (load_judge().labels(sampled) < 16).mean() >= 0.5

"""The ImageGPT benchmark at a toy size: equal models make the asked-for tokens in turns; no time is asserted."""

import pytest
import torch

from benchmarks import imagegpt
from modelwright import ImageGPTConfig

TOY = ImageGPTConfig(vocab_size=9, n_positions=8, n_embd=8, n_layer=2, n_head=2)


def test_every_contestant_makes_every_token():
    single, both = imagegpt.run(TOY, 8, [(1, 1), (2, 2)], ["float32"], with_onnx=False)
    assert (single.batch, single.rounds, both.batch, both.rounds) == (1, 1, 2, 2)
    for result in (single, both):
        assert min(result.ours, result.ours_generate, result.transformers, result.limit) > 0
        assert result.onnxruntime is None
        assert result.ratio == pytest.approx(result.ours / result.transformers, abs=0.01)


def test_a_step_reads_the_weights_but_the_embeddings_and_half_the_cache():
    model = imagegpt.ImageGPTForCausalImageModeling(TOY)
    layer = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 16
    cache = 3 * 4 * 2 * 8 * 2  # rows x tokens x keys and values x width x layers
    assert imagegpt.bytes_a_step(model, batch=3, tokens=8) == 4 * (2 * layer + 8 + 8 * 8 + cache)


def test_models_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setitem(imagegpt.TOLERANCE, torch.float32, 0.0)
    with pytest.raises(SystemExit, match="the two models disagree by"):
        list(imagegpt.run(TOY, 4, [(1, 1)], ["float32"], with_onnx=False))


def test_a_contestant_that_stops_early_ends_the_run():
    with pytest.raises(SystemExit, match=r"lazy made \(1, 2\) tokens and not \(1, 5\)"):
        imagegpt.measure({"lazy": lambda ids, tokens: torch.zeros(1, 2)}, imagegpt.start(TOY, 1), 4, rounds=1)


def test_the_table_says_what_was_measured():
    result = imagegpt.Result("float32", 1, 3, 70.0, 50.0, 34.0, None, 80.0)
    assert imagegpt.row(result) == "| float32 | 1 | 70.0 | 50.0 | 34.0 | 2.06 x | - | 80.0 |"
    assert imagegpt.head(TOY, 8).startswith("tokens a second; 8 sampled, 2 layers, 8 wide, 2 heads")
    assert imagegpt.head(TOY, 8).splitlines()[-1].count("|") == imagegpt.row(result).count("|")
    assert set(imagegpt.machine()) == {"cpu", "threads", "python", "torch", "transformers"}

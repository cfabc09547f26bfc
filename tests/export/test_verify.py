"""The comparison that ends each export: what it draws, what it lets pass, and what it says when it does not."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from modelwright.errors import CheckpointError
from modelwright.export import export_onnx, verify_onnx
from modelwright.export.graphs import onnx_config_class
from modelwright.export.manifest import Manifest
from modelwright.export.session import DecoderSession
from modelwright.export.verify import TOLERANCES, Comparison, Shape, difference, tolerance
from tests.export.graphs import tiny_imagegpt

pytestmark = pytest.mark.slow  # the export that it compares takes more than a quick test may


def comparison(exported, seed: int = 0) -> Comparison:
    config = onnx_config_class(type(exported.model))(exported.model.config)
    decoder = DecoderSession(exported.folder, Manifest.read(exported.folder), threads=1)
    return Comparison(config, exported.model, decoder, np.random.default_rng(seed))


def tampered(exported, folder, change):
    """A copy of the export whose weights ``change`` has been at."""
    shutil.copytree(exported.folder, folder)
    model = onnx.load(folder / "decoder.onnx")
    change({tensor.name: tensor for tensor in model.graph.initializer})
    onnx.save(model, folder / "decoder.onnx")
    return folder


def multiply(tensor, factor):
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))


def test_shapes_cover_the_corners_and_stay_within_the_positions(imagegpt):
    shapes = list(comparison(imagegpt).shapes(60))
    assert {shape.batch for shape in shapes} == {1, 2, 3, 4}
    assert any(shape.past == 0 and shape.sequence == 1 for shape in shapes)
    assert any(shape.past == 0 and shape.padded for shape in shapes)
    assert any(shape.past > 0 and shape.padded for shape in shapes)
    assert max(shape.past + shape.sequence for shape in shapes) == 40  # all there are
    assert shapes == list(comparison(imagegpt).shapes(60)) != list(comparison(imagegpt, seed=1).shapes(60))


def test_a_faithful_export_passes_again(imagegpt):
    found = verify_onnx(imagegpt.folder, imagegpt.model, draws=6, seed=3)
    assert [delta.output for delta in found.deltas] == list(imagegpt_outputs())
    assert 0 < found.largest < 1e-4 and (found.draws, found.greedy_tokens, found.ties) == (6, 32, 0)


def imagegpt_outputs():
    return ("logits", *(f"present.{n}.{part}" for n in range(2) for part in ("key", "value")))


def test_a_changed_weight_is_found_and_named(imagegpt, tmp_path):
    def change(weights):
        multiply(weights["model.transformer.h.1.attn.c_attn.weight"], 1.01)

    folder = tampered(imagegpt, tmp_path / "tampered", change)
    with pytest.raises(CheckpointError) as raised:
        verify_onnx(folder, imagegpt.model)
    message = str(raised.value)
    assert message.startswith("logits differs by ") and "(batch 1, sequence 1, past 0)" in message
    assert " in onnxruntime, " in message and " in PyTorch; at most 0.0001 is allowed in float32" in message


@pytest.mark.parametrize(("steps", "passes"), [(0, True), (3, True), (20, False)])
def test_numbers_far_from_float64_are_judged_by_that_distance(imagegpt, steps, passes):
    """PyTorch is 0.01 from float64, and onnxruntime so many steps of 0.01, on the other side."""
    beside, exact = comparison(imagegpt), torch.linspace(-11, 11, 23, dtype=torch.float64)
    found = {"logits": (exact - 0.01 * steps).float().numpy()}
    given = {"logits": (exact + 0.01).float()}
    if passes:
        beside.check("here", found, given, lambda: {"logits": exact})
        assert beside.worst["logits"].from_float64 == pytest.approx((0.01 * steps, 0.01), abs=1e-5)
    else:
        with pytest.raises(CheckpointError, match=r"at most 0.1 is allowed in float32, where PyTorch itself is 0.01"):
            beside.check("here", found, given, lambda: {"logits": exact})


def test_numbers_that_overflow_are_no_measure(imagegpt):
    """Where PyTorch is infinitely far from float64, onnxruntime may not be anywhere."""
    exact = torch.zeros(3, dtype=torch.float64)
    given = {"logits": torch.tensor([0.0, float("inf"), 0.0])}
    with pytest.raises(CheckpointError, match=r"logits differs by inf at \[1\] .* at most 0.0001 is allowed"):
        comparison(imagegpt).check("here", {"logits": np.zeros(3, np.float32)}, given, lambda: {"logits": exact})


def test_float64_is_asked_where_numbers_are_far_apart(imagegpt, monkeypatch):
    near, far = comparison(imagegpt), comparison(imagegpt)
    near.compare(Shape(2, 3, 4, padded=True))
    monkeypatch.setitem(TOLERANCES, "float32", (1e-12, 0.0))
    far.compare(Shape(2, 3, 4, padded=True))
    assert near.worst["logits"].from_float64 is None
    theirs, ours = far.worst["logits"].from_float64 or (0.0, 0.0)
    assert 0 < theirs < 1e-4 and 0 < ours < 1e-4


def test_a_failed_comparison_leaves_what_was_there(imagegpt, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(imagegpt.folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def of_another_model(graph, folder, *_):
        return Path(shutil.copy(imagegpt.folder / "decoder.onnx", folder))

    monkeypatch.setattr("modelwright.export.onnx.write_graph", of_another_model)
    with pytest.raises(CheckpointError, match="logits differs by "):
        export_onnx(tiny_imagegpt(seed=1), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_greedy_token_is_found(imagegpt, monkeypatch):
    beside = comparison(imagegpt)
    run = beside._onnx

    def swapped(inputs):
        outputs = run(inputs)
        scores = outputs["logits"][0, -1]
        scores[scores.argmin()] = scores.max() + 1
        return outputs

    monkeypatch.setattr(beside, "_onnx", swapped)
    with pytest.raises(CheckpointError, match=r"greedy token 0 is \d+ in onnxruntime and \d+ in PyTorch"):
        beside.greedy()


def test_a_choice_between_equal_scores_is_a_tie(imagegpt, monkeypatch):
    beside = comparison(imagegpt)
    run = beside._onnx

    def nudged(inputs):
        outputs = run(inputs)
        scores = outputs["logits"]
        scores += np.linspace(0, 1, scores.shape[-1], dtype=np.float32)
        return outputs

    monkeypatch.setattr(beside, "_onnx", nudged)
    monkeypatch.setattr("modelwright.export.verify.TOLERANCES", {"float32": (10.0, 0.0)})
    tokens, ties = beside.greedy()
    assert tokens == 32 and 0 < ties <= 32


SHAPE = Shape(2, 3, 4, True)


def test_differences():
    found, expected = np.array([[1.0, np.inf, 3.0]]), np.array([[1.0, np.inf, 3.00005]])
    assert difference("logits", SHAPE, found, expected, "float32") == pytest.approx(5e-5)
    assert difference("logits", SHAPE, found[:, :0], expected[:, :0], "float32") == 0
    assert difference("logits", SHAPE, np.full(3, 10.1), np.full(3, 10.0), "float16") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, 2.5], r"logits differs by 0.5 at \[1\] \(batch 2, sequence 3, past 4, left padding\): 2.5 in onnxrunt"),
        ([1.0, np.nan], r"logits differs by nan at \[1\]"),
        ([1.0], r"logits is \[1\] in onnxruntime and \[2\] in PyTorch \(batch 2, sequence 3, past 4, left padding\)"),
    ],
)
def test_a_difference_above_the_tolerance_raises(found, message):
    with pytest.raises(CheckpointError, match=message):
        difference("logits", SHAPE, np.array(found), np.array([1.0, 2.0]), "float32")


def test_tolerances():
    assert tolerance("float32", np.array([1e6])) == 1e-4
    assert tolerance("float16", np.array([0.1])) == 2e-2
    assert tolerance("float16", np.array([-30.0, 2.0])) == pytest.approx(0.6)

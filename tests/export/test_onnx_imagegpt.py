"""ImageGPT's graph against the model's own forward pass, every switch of its attention on and off."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.errors import ConfigError, RequestError
from modelwright.export import OnnxDecoder, export_onnx
from modelwright.families.imagegpt.model import ImageGPTForImageClassification
from tests.export.graphs import IMAGEGPT, largest_delta, lengths, tiny_imagegpt

SWITCHES = {
    "unscaled": {"scale_attn_weights": False, "activation_function": "gelu_new"},
    "by layer": {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24},
    "upcast": {"reorder_and_upcast_attn": True, "tie_word_embeddings": True, "activation_function": "relu"},
}


@pytest.mark.slow
@settings(max_examples=20)
@given(shape=lengths, padded=st.booleans())
def test_any_lengths_with_and_without_left_padding(imagegpt, shape, padded):
    assert largest_delta(imagegpt.model, imagegpt.open(), padded=padded, **shape) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch(exported, name):
    made = exported(tiny_imagegpt(**SWITCHES[name]))
    for shape in ((1, 1, 0), (3, 4, 0), (2, 1, 9)):
        assert largest_delta(made.model, made.open(), *shape, seed=0) < 1e-4


@pytest.mark.slow
def test_half_precision_scores_that_need_upcasting(exported):
    model = tiny_imagegpt(reorder_and_upcast_attn=True).half()
    made = exported(model, dtype="float16")
    assert largest_delta(model, made.open(), 2, 3, 4, seed=0) < 2e-2


@pytest.mark.slow
def test_a_picture_to_the_last_position_and_no_further(imagegpt):
    decoder = OnnxDecoder(imagegpt.folder, threads=1)
    start = np.full((2, 1), 16)
    picture = decoder.generate(start, 40)
    expected = imagegpt.model.generate(
        torch.from_numpy(start), max_new_tokens=40, do_sample=False, attention_mask=torch.ones(2, 1).long()
    )
    np.testing.assert_array_equal(picture, expected.numpy())
    assert picture[:, 1:].max() < 16  # the start token is never chosen
    with pytest.raises(RequestError, match="1 tokens and 41 new ones need 41 positions, and the model has 40"):
        decoder.generate(start, 41)


@pytest.mark.slow
def test_a_model_handed_over_is_as_it_was(imagegpt, tmp_path, monkeypatch):
    model = tiny_imagegpt().train()
    model.lm_head.eval()
    monkeypatch.setattr("modelwright.export.onnx.write_graph", _fail)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, tmp_path / "out")
    assert model.training and model.transformer.training and not model.lm_head.training
    assert list(tmp_path.iterdir()) == []


def _fail(*_):
    raise KeyboardInterrupt


def test_the_classifier_is_refused(tmp_path):
    torch.manual_seed(0)
    model = ImageGPTForImageClassification(tiny_imagegpt().config)
    with pytest.raises(ConfigError, match="ImageGPTForImageClassification is not exported"):
        export_onnx(model, tmp_path / "out")
    assert IMAGEGPT["n_layer"] == len(model.transformer.h)

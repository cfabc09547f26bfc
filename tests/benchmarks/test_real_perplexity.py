"""What the measure of rounding stands on: a shuffle that changes nothing, windows, and llama.cpp's choice of types."""

import json
from types import SimpleNamespace

import torch

from benchmarks import real_perplexity as measure
from tests.fakes import tokens
from tests.llamas import HUGGING_FACE, tiny_llama


@torch.no_grad()
def test_a_shuffled_model_computes_the_same():
    model, ids = tiny_llama(base=HUGGING_FACE), tokens(2, 9)
    before, weights = model(ids).logits, {name: weight.clone() for name, weight in measure.matrices(model).items()}
    measure.shuffle(model)
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
    assert all(not torch.equal(weight, weights[name]) for name, weight in measure.matrices(model).items())


def test_windows_lie_at_even_distances():
    def tokenizer(text, verbose):
        return {"input_ids": list(range(10 * measure.WINDOW + 5))}

    found = measure.windows(tokenizer, "", 5)
    assert [int(window[0, 0]) // measure.WINDOW for window in found] == [0, 2, 4, 6, 8]
    assert {window.shape for window in found} == {(1, measure.WINDOW)}
    assert len(measure.windows(tokenizer, "", 99)) == 10


def test_more_bits_go_where_llama_cpp_spends_them():
    """Of 8 layers the first, the last, and every third between; rows of 192 are no multiple of 256."""
    shapes = {"self_attn.v_proj": (64, 192), "self_attn.o_proj": (192, 256), "mlp.down_proj": (192, 512)}
    parts = {
        f"model.layers.{layer}.{name}.weight": torch.empty(shape)
        for layer in range(8)
        for name, shape in shapes.items()
    }
    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=8), named_parameters=parts.items)
    found = measure.types_of("Q4_K_M", model)
    assert {name: [found[f"model.layers.{layer}.{name}.weight"] for layer in range(8)] for name in shapes} == {
        "self_attn.v_proj": ["Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q8_0"],
        "self_attn.o_proj": ["Q4_K"] * 8,
        "mlp.down_proj": ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"],
    }


def test_a_stopped_run_is_continued_on_the_same_tokens_alone(tmp_path):
    path, asked = tmp_path / "found.json", {"measured": 512, "read": 512, "shuffled": True}
    assert measure.earlier(path, asked) == measure.earlier(None, asked) == {}
    path.write_text(json.dumps({"tokens": asked, "found": {"int8": {"bits": 8.0}}}))
    assert measure.earlier(path, asked) == {"int8": {"bits": 8.0}}
    assert measure.earlier(path, asked | {"read": 1024}) == {}

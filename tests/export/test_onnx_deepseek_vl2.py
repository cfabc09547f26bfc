"""DeepSeek-VL2's graphs and their runtime without torch against the model: rows, greedy tokens, messages."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright import zoo
from modelwright.errors import ConfigError, RequestError
from modelwright.export import DeepseekVLV2OnnxConfig, OnnxDecoder, OnnxPictureDecoder, verify_onnx
from modelwright.export.tile_rows import TileLayout
from modelwright.export.verify import TOLERANCES
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.deepseek_vl2.tiles import TileRows, picture_rows
from modelwright.serving.load import load
from tests.fakes import TILE, golden, tiny_vl2, tokens, vl2_inputs, write_checkpoint

pytestmark = pytest.mark.slow  # its export alone takes more than a quick test may

GOLDEN = ["vl2_batch", "vl2_odd_grid", "vl2_one_image", "vl2_tail_tiny"]
PICTURES = ("images", "images_seq_mask", "images_spatial_crop")
SHAPES = Path(__file__).parents[2] / "examples" / "pictures" / "shapes.png"

grids = st.lists(st.sampled_from([(1, 1), (2, 1), (1, 2)]), max_size=2)
"""The pictures of one row."""


@pytest.fixture(scope="module")
def made(exported):
    model = tiny_vl2(language={"num_hidden_layers": 2}, vision={"layers": 1}, vision_batch_size=3)
    return exported(model, draws=5)


@pytest.fixture(scope="module")
def decoder(made):
    return OnnxPictureDecoder(made.folder, threads=1)


def arrays(inputs):
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def greedy(model, inputs, new):
    """The best tokens by transformers' loop, the end of sentence like any other."""
    model.generation_config.eos_token_id = None
    return model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None).numpy()


@settings(max_examples=15)
@given(rows=st.lists(grids, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_rows_of_any_pictures_are_the_models(made, decoder, rows, seed):
    inputs = vl2_inputs(rows, seed=seed)
    given_parts = {name: inputs[name] for name in ("input_ids", *PICTURES)}
    with torch.no_grad():
        expected = made.model.prepare_inputs_embeds(**given_parts)
    found = decoder.prepare_inputs_embeds(**arrays(given_parts))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


def test_greedy_tokens_of_a_batch_with_and_without_pictures(made, decoder):
    inputs = vl2_inputs([[(2, 1), (1, 1)], [(1, 2)], []])
    expected = greedy(made.model, inputs, 32)
    assert np.array_equal(decoder.generate(**arrays(inputs), max_new_tokens=32, eos_token_id=()), expected)
    chunked = decoder.generate(**arrays(inputs), max_new_tokens=32, eos_token_id=(), chunk=7)
    assert np.array_equal(chunked, expected)


def test_text_alone(made, decoder):
    ids = tokens(2, 5)
    expected = greedy(made.model, {"input_ids": ids}, 8)
    assert np.array_equal(decoder.generate(ids.numpy(), max_new_tokens=8, eos_token_id=()), expected)


def test_generation_imports_neither_torch_nor_transformers(made):
    script = (
        "import sys, numpy as np\n"
        "from modelwright.export import OnnxPictureDecoder\n"
        f"decoder = OnnxPictureDecoder({str(made.folder)!r}, threads=1)\n"
        f"tiles = np.zeros((1, 2, 3, {TILE}, {TILE}), np.float32)\n"
        "seen = np.array([[False] + [True] * 13 + [False]])\n"
        "found = decoder.generate(np.full((1, 15), 5), tiles, seen, [[[1, 1]]], 3, eos_token_id=())\n"
        "assert found.shape == (1, 18)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_report_names_every_graph(made):
    assert [graph.name for graph in made.report.graphs] == ["decoder", "embed", "vision"]
    worst = {delta.output: delta for delta in made.report.verification.deltas}
    assert {"logits", "present.0.key", "inputs_embeds", "features", "marks"} <= set(worst)
    assert worst["marks"].largest == 0.0 and made.report.verification.largest < 1e-4
    assert str(worst["features"].shape).startswith("tiles ")


@settings(max_examples=30)
@given(
    crop=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    side=st.integers(1, 3),
    tag=st.sampled_from(["2D", "1D"]),
    position=st.sampled_from(["head", "tail"]),
    seed=st.integers(0, 99),
)
def test_tiles_are_arranged_as_the_model_does(crop, side, tag, position, seed):
    numbers = torch.Generator().manual_seed(seed)
    features = torch.randn(1 + crop[0] * crop[1], side * side, 4, generator=numbers)
    marks = torch.randn(2 if tag == "2D" else 10, 4, generator=numbers)
    rows = TileRows(tag, position == "head", newline=marks[0], separator=marks[1], indicators=marks)
    found = TileLayout(tag, position, marks.numpy()).rows(features.numpy(), crop)
    assert np.array_equal(found, picture_rows(features, crop, rows).numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": np.zeros((1, 2, 3, 4, 4))},
            r"images has shape \[1, 2, 3, 4, 4\] and must have \[1, any, 3, 8, 8",
        ),
        ({"images_seq_mask": None}, "images come with images_seq_mask and images_spatial_crop; images_seq_mask is mis"),
        ({"images_spatial_crop": None}, "images_spatial_crop is missing"),
        ({"images_spatial_crop": [[[2, 1]]]}, "row 0 needs 3 tiles by images_spatial_crop and images holds 2"),
        ({"images": None}, "row 0 has 13 image places in images_seq_mask and 0 image rows from its tiles"),
        ({"images_seq_mask": np.ones((1, 19))}, "row 0 has 19 image places in images_seq_mask and 13 image rows"),
        ({"max_new_tokens": 200}, "19 tokens and 200 new ones need 218 positions, and the model has 128"),
        ({"input_ids": np.full((1, 19), 64)}, r"input_ids must be at least 0 and below vocab_size \(64\), got 64"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, change, message):
    inputs = arrays(vl2_inputs([[(1, 1)]])) | {"max_new_tokens": 2}
    with pytest.raises(RequestError, match=message):
        decoder.generate(**inputs | change)


def test_each_decoder_refuses_the_others_folder(made, exported, imagegpt):
    with pytest.raises(RequestError, match="holds a deepseek_vl_v2, whose decoder reads rows: use OnnxPictureDecoder"):
        OnnxDecoder(made.folder, threads=1).generate(np.zeros((1, 2), np.int64), 2)
    with pytest.raises(RequestError, match="holds a imagegpt, which reads no pictures: use OnnxDecoder"):
        OnnxPictureDecoder(imagegpt.folder, threads=1)


def test_dummy_inputs_are_what_the_processor_makes_of_pictures():
    processor = load(zoo.path("vl2-nano")).processor
    config = DeepseekVLV2OnnxConfig(tiny_vl2().config)
    made = config.generate_dummy_inputs(processor, batch_size=2, framework="np", image_width=50, image_height=20)
    assert made["images"].shape[0] == made["input_ids"].shape[0] == 2
    assert made["images_seq_mask"].any(axis=1).all()
    for fields, message in (
        ({"seq_length": 5}, "is_pair must be False and seq_length -1, got is_pair=False, seq_length=5"),
        ({"num_channels": 1}, "num_channels must be 3, as the tower reads, got 1"),
        ({"batch_size": 0}, r"batch_size \(0\) and the picture's sides \(32, 32\) must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config.generate_dummy_inputs(processor, **fields)


@pytest.mark.parametrize("name", GOLDEN)
def test_rows_and_logits_of_the_official_code_and_the_models_greedy_tokens(exported, tmp_path, name):
    config, weights, inputs, outputs = golden(name)
    folder = write_checkpoint(tmp_path, config | {"model_type": "deepseek_vl_v2"}, weights)
    made = exported(DeepseekVLV2ForCausalLM.from_pretrained(folder), draws=4)
    decoder = OnnxPictureDecoder(made.folder, threads=1)
    plain = {key: value.numpy() for key, value in inputs.items() if key in ("input_ids", *PICTURES)}
    mask = inputs["attention_mask"].long().numpy()
    rows, real = decoder.prepare_inputs_embeds(**plain), mask.astype(bool)
    np.testing.assert_allclose(rows[real], outputs["inputs_embeds"].numpy()[real], atol=1e-4, rtol=0)
    session = decoder.text.decoder
    logits, _ = session.run({"inputs_embeds": rows}, mask, session.no_past(len(mask)), keep=0)
    np.testing.assert_allclose(logits[real], outputs["logits"].numpy()[real], atol=1e-4, rtol=0)
    found = decoder.generate(**plain, max_new_tokens=8, attention_mask=mask, eos_token_id=())
    kept = {name: tensor for name, tensor in inputs.items() if name != "position_ids"}
    assert np.array_equal(found, greedy(made.model, kept, 8))


@pytest.mark.parametrize(
    ("projector", "vision", "fields"),
    [
        ({"projector_type": "identity", "n_embed": 16}, {"class_token": True}, {"tile_tag": "1D"}),
        ({"projector_type": "linear", "use_bias": False}, {"deterministic": True}, {"global_view_pos": "tail"}),
        ({"projector_type": "mlp_gelu", "depth": 3}, {"patch_size": 3}, {"tile_tag": "1D", "global_view_pos": "tail"}),
        ({"token_pooling": True, "projector_type": "mlp_gelu"}, {"image_size": 8}, {}),
        ({"downsample_ratio": 3, "mlp_ratio": 2, "depth": 3}, {}, {}),
    ],
)
def test_every_projector_and_layout(exported, projector, vision, fields):
    language = {"hidden_size": projector.get("n_embed", 32), "num_hidden_layers": 1, "first_k_dense_replace": 0}
    projector = {"n_embed": 32, "input_dim": 16} | projector
    made = exported(tiny_vl2(language=language, vision=vision, projector_config=projector, **fields), draws=4)
    decoder = OnnxPictureDecoder(made.folder, threads=1)
    side = made.model.config.vision_config.image_size
    with torch.no_grad():
        features = made.model.projector(made.model.vision(torch.zeros(1, 3, side, side))).shape[1]
    flat = fields.get("tile_tag") == "1D"
    inputs = vl2_inputs([[(2, 1)], [(1, 2), (1, 1)]], count=_counter(flat, features))
    given_parts = {name: inputs[name] for name in ("input_ids", *PICTURES)}
    with torch.no_grad():
        expected = made.model.prepare_inputs_embeds(**given_parts)
    np.testing.assert_allclose(decoder.prepare_inputs_embeds(**arrays(given_parts)), expected.numpy(), atol=1e-4)
    expected = greedy(made.model, inputs, 8)
    assert np.array_equal(decoder.generate(**arrays(inputs), max_new_tokens=8, eos_token_id=()), expected)


def test_half_precision(exported):
    made = exported(tiny_vl2(language={"num_hidden_layers": 1}, vision={"layers": 1}), dtype="float16", draws=4)
    decoder = OnnxPictureDecoder(made.folder, threads=1)
    inputs = vl2_inputs([[(2, 1)]])
    found = decoder.prepare_inputs_embeds(**arrays({name: inputs[name] for name in ("input_ids", *PICTURES)}))
    with torch.no_grad():
        expected = made.model.prepare_inputs_embeds(**{name: inputs[name] for name in ("input_ids", *PICTURES)})
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), atol=2e-2)


def test_the_shipped_model_answers_alike(exported):
    folder = zoo.path("vl2-nano")
    made = exported(folder, draws=3)
    loaded = load(folder)
    decoder = OnnxPictureDecoder(made.folder)
    for question in ("What colour is the largest shape?", "How many circles are there?"):
        asked = [{"role": "<|User|>", "content": f"<image>\n{question}", "images": [str(SHAPES)]}]
        asked.append({"role": "<|Assistant|>", "content": ""})
        inputs = loaded.processor(conversations=asked)
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", *PICTURES)}
        expected = loaded.model.generate(**kept, max_new_tokens=32, do_sample=False).numpy()
        found = decoder.generate(**arrays(kept), max_new_tokens=32)
        assert np.array_equal(found, expected), question
        assert 1 < found.shape[1] - kept["input_ids"].shape[1] < 32


def _counter(flat: bool, features: int):
    """Rows of a picture by its grid, for tiles of ``features`` rows each."""

    def count(grid: tuple[int, int]) -> int:
        width, height = grid
        if flat:
            return (1 + width * height) * (features + 1)
        side = round(features**0.5)
        return side * (side + 1) + 1 + height * side * (width * side + 1)

    return count


def test_each_graph_is_judged_by_float64_where_it_is_far(made, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "float32", (1e-12, 0.0))
    found = {delta.output: delta for delta in verify_onnx(made.folder, made.model, draws=2).deltas}
    assert {"logits", "features"} <= found.keys()
    for name in ("logits", "features"):
        theirs, ours = found[name].from_float64 or (0.0, 0.0)
        assert 0 < theirs < 1e-4 and 0 < ours < 1e-4 and found[name].largest <= theirs + ours

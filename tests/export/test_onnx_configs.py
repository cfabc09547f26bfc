"""The public description of each family's graphs, and the dummy inputs that preprocessors make."""

import numpy as np
import pytest
import torch
import transformers

from modelwright.errors import ConfigError
from modelwright.export import ImageGPTOnnxConfig, LlamaOnnxConfig
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from modelwright.families.llama.config import LlamaConfig
from tests.checkpoints.tiny import GOLDEN
from tests.export.graphs import IMAGEGPT
from tests.llamas import HUGGING_FACE, MINDFORMERS

PALETTE = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)
SIZE = {"height": 6, "width": 5}


@pytest.fixture
def config():
    return ImageGPTOnnxConfig(ImageGPTConfig(**IMAGEGPT))


def test_the_interface_of_imagegpt(config):
    assert config.inputs == {"input_ids": {0: "batch", 1: "sequence"}}
    assert config.outputs == {"logits": {0: "batch", 1: "sequence"}}
    assert list(config.graph_inputs) == [
        "input_ids", "attention_mask", "past.0.key", "past.0.value", "past.1.key", "past.1.value",
    ]  # fmt: skip
    assert config.graph_inputs["past.1.key"] == {0: "batch", 2: "past"}
    assert config.graph_outputs["present.0.value"] == {0: "batch", 2: "past + sequence"}
    assert config.max_positions == 40


@pytest.mark.parametrize("framework", ["pt", "np", None])
def test_dummy_pictures_are_what_the_preprocessor_makes(config, framework):
    processor = ImageGPTImageProcessor(clusters=PALETTE, size=SIZE)
    made = config.generate_dummy_inputs(processor, 2, framework=framework)
    assert list(made) == ["input_ids"] and np.asarray(made["input_ids"]).shape == (2, 30)
    assert np.asarray(made["input_ids"]).min() >= 0 and np.asarray(made["input_ids"]).max() < 16
    assert isinstance(made["input_ids"], {"pt": torch.Tensor, "np": np.ndarray, None: list}[framework])


def test_dummy_pictures_through_transformers_own_processor(config):
    theirs = transformers.ImageGPTImageProcessor(clusters=PALETTE.tolist(), size=SIZE)
    ours = ImageGPTImageProcessor(clusters=PALETTE, size=SIZE)
    made = config.generate_dummy_inputs(theirs, framework="pt", image_width=9, image_height=7)
    same = config.generate_dummy_inputs(ours, framework="pt", image_width=9, image_height=7)
    assert made["input_ids"].shape == same["input_ids"].shape == (1, 30)


class Recorder:
    """Keeps the pictures it is given."""

    def __call__(self, images, return_tensors):
        self.images = images
        return {"input_ids": np.zeros((len(images), 4), np.int64)}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_arguments_make_the_pictures(config, channels):
    recorder = Recorder()
    made = config.generate_dummy_inputs(recorder, 3, 2, num_channels=channels, image_width=8, image_height=5)
    assert [(picture.size, picture.mode) for picture in recorder.images] == [((8, 5), "RGB")] * 3
    pixels = [np.asarray(picture) for picture in recorder.images]
    assert (channels == 1) == all((picture[..., 0] == picture[..., 1]).all() for picture in pixels)
    assert made["input_ids"].shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_pair": True}, "is_pair must be False: a causal model reads one thing a row, got True"),
        ({"num_channels": 2}, "num_channels must be 1, 3 or 4, got 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_width": 0}, "image_width must be at least 1, got 0"),
        ({"seq_length": 5}, "seq_length must be -1 or from 1 to the 4 of input_ids, got 5"),
        ({"seq_length": 0}, "seq_length must be -1 or from 1 to the 4 of input_ids, got 0"),
    ],
)
def test_an_argument_out_of_range_is_refused(config, arguments, message):
    with pytest.raises(ConfigError, match=message):
        config.generate_dummy_inputs(Recorder(), **arguments)


def test_the_interface_of_llama():
    config = LlamaOnnxConfig(LlamaConfig(**HUGGING_FACE))
    assert config.inputs == {"input_ids": {0: "batch", 1: "sequence"}}
    assert [(part.name, part.heads, part.width) for part in config.cache.parts] == [("key", 2, 8), ("value", 2, 8)]
    assert (config.takes_mask, config.max_positions) == (True, 64)


def test_dummy_texts_are_what_the_tokenizer_makes():
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(GOLDEN / "tokenizer")
    config = LlamaOnnxConfig(LlamaConfig(**HUGGING_FACE))
    made = config.generate_dummy_inputs(tokenizer, 2, 5, framework="pt")
    assert made["input_ids"].shape == made["attention_mask"].shape == (2, 5)
    assert config.generate_dummy_inputs(tokenizer)["input_ids"][0][:5] == made["input_ids"][0].tolist()
    with pytest.raises(ConfigError, match="is_pair must be False"):
        config.generate_dummy_inputs(tokenizer, is_pair=True)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, 64), ({"extend_method": "DYNAMIC_NTK", "is_dynamic": True}, None)],
)
def test_a_rotation_that_grows_bounds_no_sequence(fields, limit):
    assert LlamaOnnxConfig(LlamaConfig(**MINDFORMERS | fields)).max_positions == limit


def test_the_types_of_an_export():
    config = LlamaConfig(**MINDFORMERS | {"compute_dtype": "bfloat16", "param_init_type": "float32"})
    types = LlamaOnnxConfig.types(config, "float32")
    assert set(types.values()) == {"float32"} and types["compute_dtype"] == "float32"
    half = LlamaOnnxConfig.types(LlamaConfig(**MINDFORMERS), "float16")
    assert (half["compute_dtype"], half["param_init_type"]) == ("float16", "float16")
    assert (half["layernorm_compute_type"], half["softmax_compute_type"]) == ("float32", "float32")

"""`plan`: what it takes from configs, what it answers about devices, and the sentences for what cannot be planned."""

from pathlib import Path
from typing import Any

import pytest

from modelwright.errors import ConfigError, RequestError
from modelwright.families.read import read_config
from modelwright.planner.activations import kept_for_backward
from modelwright.planner.counting import count
from modelwright.planner.device import Devices
from modelwright.planner.layout import Layout
from modelwright.planner.memory import peak_memory
from modelwright.planner.plan import plan
from modelwright.planner.precision import Precision
from tests.planner.small import deepseek, llama, vl2

HUB = sorted(path.parent for path in (Path(__file__).parents[1] / "data" / "hub_configs").glob("*/config.json"))
SLIDES = "mistral-7b-v0.1"
"""Its attention sees a window of its context, which none of our models does."""


@pytest.mark.parametrize("folder", [folder for folder in HUB if folder.name != SLIDES], ids=lambda folder: folder.name)
def test_every_hub_config_is_planned(folder):
    planned = plan(read_config(folder), devices=Devices(80 * 2**30, 8))
    every = planned.counts.parameters.total
    assert planned.weights["float32"] == 4 * every
    assert planned.fits is (planned.memory.total <= 80 * 2**30)
    assert planned.layout.ranks == 8


def test_what_is_left_out_is_the_configs():
    planned = plan(deepseek())
    assert (planned.work.context, planned.work.batch, planned.work.explicit) == (128, 1, False)
    assert planned.precision == Precision.uniform("float32")
    assert planned.layout == Layout()
    assert (planned.devices, planned.fits, planned.largest_context, planned.largest_batch) == (None, None, None, None)
    assert plan(deepseek(max_position_embeddings=100_000)).work.context == 4096


def test_a_mindformers_llama_says_its_types_batch_attention_and_quantization():
    fields: dict[str, Any] = {
        "num_layers": 2,
        "num_heads": 4,
        "hidden_size": 8,
        "multiple_of": 8,
        "vocab_size": 32,
        "seq_length": 64,
    }
    fields |= {"param_init_type": "float16", "compute_dtype": "bfloat16", "embedding_init_type": "float32"}
    config = type(llama())(
        **fields, dialect="mindformers", batch_size=3, quant_config={"quant_method": "int8_weight_only"}
    )
    planned = plan(config)
    assert planned.precision == Precision("float16", "float32", "float32", "bfloat16", "bfloat16", "int8")
    assert (planned.work.batch, planned.work.explicit, planned.work.context) == (3, True, 64)
    cached = type(llama()).from_dict(config.to_dict(), quant_config={"quant_method": "int8_kv"})
    assert (plan(cached).precision.quant, plan(cached).precision.kv) == (None, "int8")


def test_options_replace_the_configs_types():
    asked = plan(llama(), dtype="fp32", kv_dtype="fp8", quant="int4").precision
    assert asked == Precision("float32", "float32", asked.norms, "float32", "fp8", "int4")
    assert plan(llama(), attention="eager").work.explicit and not plan(llama(), attention="fused").work.explicit


def test_training_is_planned_beside_serving_and_chosen_by_train():
    serving, training = plan(deepseek()), plan(deepseek(), train=True, optimizer="sgd", recompute=True)
    assert serving.memory == serving.serving == training.serving
    assert training.memory == training.recomputing
    assert training.recomputing.activations < training.training.activations
    assert training.recomputing.optimizer == 0


def test_recomputation_is_asked_for_by_a_llamas_own_config():
    config = llama(parallel_config={"recompute": True})
    assert plan(config, train=True).work.recompute
    assert not plan(config, train=True, recompute=False).work.recompute


def test_leading_layers_of_each_stage_are_recomputed():
    degrees = {"pipeline_stage": 2, "micro_batch_num": 2}

    def first_stage(rule):
        config = llama(num_hidden_layers=4, parallel_config=degrees | {"recompute": rule})
        return plan(config, train=True, context=10, attention="fused").ranks[0].memory.activations

    layer = 10 * kept_for_backward(count(llama()).layers[0], 2).on_rank()
    inputs, tokens = 10 * 8 * 2, 10 * 8
    assert first_stage(False) == 2 * (2 * layer + tokens)  # two micro-batches of two layers
    assert first_stage([1, 0]) == 2 * (inputs + layer + tokens)
    assert first_stage(True) == first_stage([2, 2]) == 2 * (2 * inputs + tokens)
    with pytest.raises(ConfigError, match=r"recompute \(\[1\]\) must state a number for each pipeline_stage \(2\)"):
        first_stage([1])


def test_the_largest_that_fits_is_the_largest():
    devices = Devices(400_000)
    planned = plan(deepseek(), context=16, devices=devices)
    counts, precision = count(deepseek()), planned.precision
    assert planned.fits
    batch = planned.largest_batch
    assert batch is not None

    def needed(number):
        work = plan(deepseek(), context=16, batch=number).work
        return peak_memory(counts, planned.layout, precision, work).total

    assert needed(batch) <= devices.memory < needed(batch + 1)


def test_nothing_fits_where_the_weights_do_not():
    planned = plan(deepseek(), devices=Devices(1000))
    assert (planned.fits, planned.largest_context, planned.largest_batch) == (False, 0, 0)


def test_a_picture_takes_its_tokens_and_its_tiles():
    planned = plan(vl2(), image=(200, 100))  # two tiles of 2 x 2 rows beside the global view
    assert planned.image is not None
    assert (planned.image.tiles, planned.image.tokens) == (3, 2 * 3 + 1 + 2 * (2 * 2 + 1))
    assert planned.work.tiles == 3


def test_fields_without_effect_are_listed():
    assert plan(llama(parallel_config={"mem_coeff": 0.5})).without_effect == (
        "parallel_config.mem_coeff (a weight in MindFormers' own planner of layouts)",
    )
    assert plan(llama()).without_effect == ()
    assert plan(deepseek()).without_effect == ("num_key_value_heads (with use_mla all heads share one latent)",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"attention": "flash"}, "attention must be fused or eager, got 'flash'"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, adamw8bit, lion, sgd, got 'adam'"),
        ({"image": (3, 4)}, "image needs a model that sees pictures, and deepseek_v2 reads none"),
        (
            {"train": True, "quant": "int8"},
            "quant (int8) cannot be trained: weights must be whole to learn",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(options, message):
    with pytest.raises(RequestError) as error:
        plan(deepseek(), **options)
    assert str(error.value) == message


def test_a_picture_must_fit_the_context():
    with pytest.raises(RequestError) as error:
        plan(vl2(), image=(200, 100), context=16)
    assert str(error.value) == "context (16) must hold the tokens of the picture (17)"
    with pytest.raises(RequestError, match="image must be at least 1x1 pixels, got 0x5"):
        plan(vl2(), image=(0, 5))

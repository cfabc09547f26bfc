"""What weights take that other programs have quantized: by hand, by published files, and by transformers' patterns."""

import dataclasses
import json
import re
from typing import Any

import pytest
from transformers.quantizers.quantizers_utils import should_convert_module

from modelwright.configs.engine import QuantSettings, weight_quantization
from modelwright.errors import ConfigError, RequestError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.device import parse_devices
from modelwright.planner.foreign import read_foreign
from modelwright.planner.plan import plan
from modelwright.planner.report import as_object
from modelwright.planner.stored import WeightFormat, named
from tests.fakes import MOE, VL2
from tests.imagegpts import TINY

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
MATRICES = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096)}
MATRICES |= {"gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336)}
"""(outputs, inputs) of each projection of a layer."""
REST = 2 * (2 * 128256 * 4096 + 65 * 4096)
"""Bytes of embedding, head and norms in bfloat16."""


def compressed(form: str, ignore: tuple[str, ...] = ("lm_head",), **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
    }


def of(section: dict[str, Any], base: dict[str, Any] = LLAMA_3_8B) -> LlamaConfig:
    return LlamaConfig.from_dict(base | {"quantization_config": section})


def stored_bytes(config: Any) -> int:
    found = plan(config)
    return next(size for name, size in found.weights.items() if name.endswith("as stored"))


def blocks(outputs: int, inputs: int, tall: int, wide: int) -> int:
    return -(-outputs // tall) * -(-inputs // wide)


BY_HAND: dict[str, tuple[dict[str, Any], Any]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        lambda o, i: o * i / 2 + o * i / 128 * (2 + 0.5),
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        lambda o, i: o * i / 2 + o * i / 128 * 2.5 + 4 * i,
    ),
    "gptq, 8 bits, no groups": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1},
        lambda o, i: o * i + o * 3 + 4 * i,
    ),
    "bitsandbytes, 8 bits": ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, lambda o, i: o * i + 4 * o),
    "bitsandbytes, 4 bits": (
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        lambda o, i: o * i / 2 + o * i / 64 * 4 + 64,
    ),
    "bitsandbytes, nested": (
        {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        lambda o, i: o * i / 2 + o * i / 64 * (1 + 4 / 256) + 64 + 1028,
    ),
    "fp8": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        lambda o, i: o * i + 4 * blocks(o, i, 128, 128),
    ),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, lambda o, i: o * i + 4 * o),
    "compressed-tensors, w4a16": (
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=128),
        lambda o, i: o * i / 2 + o * i / 128 * 2,
    ),
    "compressed-tensors, offsets": (
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=128, symmetric=False),
        lambda o, i: o * i / 2 + o * i / 128 * 2.5,
    ),
    "compressed-tensors, fp8": (
        compressed("float-quantized", type="float", strategy="channel"),
        lambda o, i: o * i + 2 * o,
    ),
    "compressed-tensors, one scale": (
        compressed("float-quantized", type="float", strategy="tensor"),
        lambda o, i: o * i + 2,
    ),
    "compressed-tensors, nvfp4": (
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        lambda o, i: o * i / 2 + o * i / 16 + 8,
    ),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        lambda o, i: o * i / 2 + o * i / 64 * 4,
    ),
    "aqlm": (
        {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1, "nbits_per_codebook": 16},
        lambda o, i: o * i / 8 * 2 + 2 * o + 2 * 2**16 * 8,
    ),
    "eetq": ({"quant_method": "eetq", "weights": "int8"}, lambda o, i: o * i + 2 * o),
    "quanto, int8": ({"quant_method": "quanto", "weights": "int8"}, lambda o, i: o * i + 2 * o),
    "quanto, int4": ({"quant_method": "quanto", "weights": "int4"}, lambda o, i: o * i / 2 + o * i / 128 * 4),
    "torchao, by name": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, lambda o, i: o * i + 2 * o),
    "torchao, by class": (
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}},
        },
        lambda o, i: o * i / 2 + o * i / 32 * 4,
    ),
    "mxfp4": ({"quant_method": "mxfp4"}, lambda o, i: o * i / 2 + o * i / 32),
    "mxfp8": ({"quant_method": "mxfp8"}, lambda o, i: o * i + o * i / 32),
    "higgs": ({"quant_method": "higgs", "bits": 4, "p": 2, "group_size": 256}, lambda o, i: o * i / 2 + o * i / 128),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, lambda o, i: o * i / 2 + o * i / 16 + 8),
    "auto-round": (
        {"quant_method": "auto-round", "bits": 2, "group_size": 64, "sym": True},
        lambda o, i: o * i / 4 + o * i / 64 * 2.25,
    ),
    "bitnet": ({"quant_method": "bitnet"}, lambda o, i: o * i / 4 + 2),
    "sinq": ({"quant_method": "sinq", "nbits": 4, "group_size": 64}, lambda o, i: o * i / 2 + o * i / 64 * 4),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_matrix_takes_its_numbers_scales_and_offsets(name):
    section, matrix = BY_HAND[name]
    expected = REST + 32 * sum(matrix(outputs, inputs) for outputs, inputs in MATRICES.values())
    assert stored_bytes(of(section)) == pytest.approx(expected, rel=1e-9, abs=32 * 7)


PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "Meta-Llama-3-8B-Instruct-AWQ": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 5.73e9),
    "Meta-Llama-3-8B-Instruct-GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 5.74e9),
    "Meta-Llama-3-8B-AQLM-2Bit-1x16": (
        {"quant_method": "aqlm", "in_group_size": 8, "num_codebooks": 1, "nbits_per_codebook": 16},
        4.08e9,
    ),
}
"""Llama-3 8B as published, and the size of its files in bytes, to three digits."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_as_large(name):
    section, size = PUBLISHED[name]
    assert stored_bytes(of(section)) == pytest.approx(size, rel=0.002)


def llama_405b_fp8() -> LlamaConfig:
    left = [f"model.layers.{layer}.self_attn" for layer in range(126)] + ["lm_head"]
    left += [f"model.layers.{layer}.mlp.{name}_proj" for layer in (0, 125) for name in ("gate", "up", "down")]
    section = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": left}
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
    return of(section, LLAMA_3_8B | sizes)


def test_llama_3_1_405b_in_fp8_fits_its_node():
    found = plan(llama_405b_fp8(), devices=parse_devices("80GB,8"))
    attention, feed_forward = 2 * 16384 * 16384 + 2 * 1024 * 16384, 3 * 16384 * 53248
    scales = 124 * 4 * (2 * 53248 + 16384)
    outside = 2 * (2 * 128256 * 16384 + 253 * 16384)
    expected = 2 * (126 * attention + 2 * feed_forward) + 124 * feed_forward + scales + outside
    assert found.weights["fbgemm_fp8, as stored"] == expected
    assert (found.fits, found.layout.model, found.quantized_by) == (True, 8, "fbgemm_fp8")
    assert as_object(found)["planned"]["quant"] == "fbgemm_fp8"
    assert not plan(in_bfloat16(llama_405b_fp8()), devices=parse_devices("80GB,8")).fits


def in_bfloat16(config: LlamaConfig) -> LlamaConfig:
    """The same model in bfloat16."""
    values = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    return LlamaConfig.from_dict(values)


LEFT_OUT = {
    "model.layers.1": ["1.q", "1.gate_proj", "1.gate"],
    "layers.1": [],
    "gate": ["1.gate", "11.gate"],
    "mlp.gate": ["1.gate", "11.gate"],
    "q_proj": ["1.q", "11.q"],
    r"model.layers.\d+.mlp": ["1.gate_proj", "1.gate", "11.gate_proj", "11.gate"],
    "lm_head": [],
    "[": [],
}
MODULES = {
    f"{layer}.{short}": f"model.layers.{layer}.{name}"
    for layer in (1, 11)
    for short, name in {"q": "self_attn.q_proj", "gate_proj": "mlp.gate_proj", "gate": "mlp.gate"}.items()
}


@pytest.mark.parametrize("pattern", LEFT_OUT)
def test_modules_are_left_out_by_transformers_patterns(pattern):
    """The oracle is transformers' rule; in releases such as 5.17 a pattern may end within a name ("layers.1" in 11)."""
    left_out = named([pattern])
    assert [short for short, module in MODULES.items() if left_out(module)] == LEFT_OUT[pattern]
    if pattern == "[":  # which transformers raises on
        return
    ends_at_names = should_convert_module("model.layers.11", ["model.layers.1"])
    for module in MODULES.values():
        within = not ends_at_names and re.match(pattern, module) is not None
        assert should_convert_module(module, [pattern]) is not (left_out(module) or within)


def test_compressed_tensors_patterns_are_whole_names_or_expressions():
    ignored = named(["re:.*self_attn.*", "model.layers.1.mlp.gate_proj"], exact=True)
    assert [short for short, module in MODULES.items() if ignored(module)] == ["1.q", "1.gate_proj", "11.q"]


def test_layers_and_modules_of_their_own_are_counted_apart():
    everything = stored_bytes(of(compressed("float-quantized", type="float", strategy="channel")))
    left = compressed("float-quantized", ("lm_head", "re:model.layers.0.self_attn.*"), type="float", strategy="channel")
    attention = [MATRICES[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert stored_bytes(of(left)) - everything == sum(2 * o * i - (o * i + 2 * o) for o, i in attention)
    only = {"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_in_block_to_quantize": [["mlp.up_proj"]]}
    up = WeightFormat(4, (1, 128), offset=0.5, each_input=4).bytes_of(4096, 14336)
    others = sum(2 * outputs * inputs for name, (outputs, inputs) in MATRICES.items() if name != "up_proj")
    assert stored_bytes(of(only)) == REST + 32 * (others + up)
    head = {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}
    packed = WeightFormat(4, (1, 128), offset=0.5, each_input=4).bytes_of(4096, 128256)
    assert stored_bytes(of(head | {"lm_head": False})) - stored_bytes(of(head)) == 2 * 4096 * 128256 - packed


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (lambda section: DeepseekV2Config.from_dict(MOE | {"quantization_config": section}), "re:.*mlp.experts.*"),
        (lambda section: DeepseekVLV2Config.from_dict(VL2 | {"quantization_config": section}), "re:language.*"),
        (lambda section: ImageGPTConfig.from_dict(TINY | {"quantization_config": section}), "re:.*c_fc"),
    ],
    ids=["deepseek_v2", "deepseek_vl2", "imagegpt"],
)
def test_every_family_is_counted_and_leaves_out_what_is_named(config, left):
    section = compressed("int-quantized", strategy="channel", type="int")
    packed = stored_bytes(config(section))
    some = stored_bytes(config(section | {"ignore": ["lm_head", "language.lm_head", left]}))
    plain = plan(config(section)).weights["float32"]
    assert packed < some < plain * 1.01


def test_mindformers_integers_are_planned_with_their_cache():
    section = {
        "quant_method": "smooth_quant",
        "weight_dtype": "int8",
        "activation_dtype": "int8",
        "kvcache_dtype": "int8",
        "outliers_suppression": "smooth",
        "modules_to_not_convert": ["lm_head", "w2"],
    }
    sizes = {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "vocab_size": 32000, "intermediate_size": 11008}
    run = {"model": {"model_config": sizes | {"quantization_config": section}}}
    found = plan(LlamaConfig.from_mindformers(run))
    assert (found.precision.kv, found.quantized_by) == ("int8", "smooth_quant")
    whole = {name: section[name] for name in ("quant_method", "weight_dtype")} | {"modules_to_not_convert": ["lm_head"]}
    run["model"]["model_config"]["quantization_config"] = whole
    more = plan(LlamaConfig.from_mindformers(run)).serving.weights
    assert found.serving.weights - more == pytest.approx(32 * 11008 * 4096, rel=0.01)  # the second matrix in 16 bits
    run["model"]["model_config"]["quantization_config"] = section | {
        "quant_method": "rtn",
        "outliers_suppression": "None",
    }
    assert plan(LlamaConfig.from_mindformers(run)).quantized_by == "rtn"
    run["model"]["model_config"]["quantization_config"] = whole | {"quant_method": "rtn", "kvcache_dtype": "None"}
    assert weight_quantization(LlamaConfig.from_mindformers(run)) == QuantSettings("int8")  # which is run, too


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"quant_method": "vptq"}, 'quant_method "vptq" is not known, so weights are counted in the type stated'),
        ({"quant_method": "awq", "bits": "many"}, "bits must be a number from 1 to 32, got 'many'"),
        ({"quant_method": "gptq"}, "bits must be a number from 1 to 32, got None"),
        ({"quant_method": "torchao", "quant_type": "novel"}, "quant_type 'novel'"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_8bit nor load_in_4bit is true"),
        ({"quant_method": "compressed-tensors"}, "no group quantizes weights"),
        ({"quant_method": "modelopt", "quant_algo": "W1"}, "quant_algo must be one of"),
        ({"quant_method": "aqlm", "in_group_size": 0}, "in_group_size must be a number"),
        ({"quant_method": "fp8", "weight_block_size": [1]}, "weight_block_size must be two numbers"),
        ({"quant_method": "awq", "modules_to_not_convert": [3]}, "modules left out must be names"),
    ],
)
def test_what_is_unknown_is_said_and_counted_as_stated(section, told):
    found = plan(of(section))
    assert any(told in line for line in found.without_effect)
    assert found.serving.weights == found.weights["bfloat16"]
    json.dumps(as_object(found))


def test_what_is_asked_for_counts_before_what_is_stored():
    section = BY_HAND["awq"][0]
    assert plan(of(section), quant="int8").serving.weights == plan(of(section)).weights["int8"]
    with pytest.raises(RequestError, match=r"quant \(int8\) cannot be trained: weights must be whole to learn"):
        plan(of(section), train=True, quant="int8")
    assert plan(of(section)).training.weights == plan(of(section)).weights["bfloat16"]


def test_a_run_trains_the_numbers_that_are_read_and_nothing_else():
    assert plan(of(BY_HAND["awq"][0]), train=True).training == plan(of(BY_HAND["awq"][0])).training
    with pytest.raises(RequestError, match=r"quant \(hqq\) cannot be trained: weights must be whole to learn"):
        plan(of({"quant_method": "hqq", "quant_config": {"nbits": 4}}), train=True)


def test_one_of_transformers_objects_is_read_as_its_dict():
    from transformers import BitsAndBytesConfig

    section = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert dataclasses.asdict(read_foreign(section).groups[0][1])["bits"] == 4


def test_a_model_that_no_memory_addresses_is_refused():
    with pytest.raises(
        ConfigError, match=r"at most 2\*\*63 - 1 parameters.*and the sizes of this config make about 2\.7"
    ):
        plan(LlamaConfig(hidden_size=2**62, num_attention_heads=2**31, num_key_value_heads=2**31))
    with pytest.raises(RequestError, match="context must be at most 1099511627776"):
        plan(LlamaConfig(), context=2**62)

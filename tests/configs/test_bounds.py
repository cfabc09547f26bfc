"""Counts in a config that something is listed by: refused beyond a bound, before anything is listed."""

import time

import pytest

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config, MlpProjectorConfig, VisionEncoderConfig
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig

EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 10**9}
BOUNDS = [
    (LlamaConfig, {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4096, got 1000000000"),
    (LlamaConfig, {"num_layers": 2**62}, "num_hidden_layers must be at most 4096"),
    (
        LlamaConfig,
        {"moe_config": {"expert_num": 10**9}},
        r"expert_num \(1000000000\) x the layers \(32\) must be at most",
    ),
    (DeepseekV2Config, {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4096, got 1000000000"),
    (DeepseekV2Config, EXPERTS, r"n_routed_experts \(1000000000\) x the layers \(30\) must be at most 1000000$"),
    (
        DeepseekVLV2Config,
        {"language_config": {"num_hidden_layers": 10**9}},
        "language_config: num_hidden_layers must be",
    ),
    (DeepseekVLV2Config, {"vision_config": {"layers": 10**9}}, "vision_config: layers must be at most 4096"),
    (DeepseekVLV2Config, {"projector_config": {"depth": 10**9}}, "projector_config: depth must be at most 4096"),
    (ImageGPTConfig, {"n_layer": 10**9}, "n_layer must be at most 4096, got 1000000000"),
    (ImageGPTConfig, {"num_hidden_layers": 10**9}, "n_layer must be at most 4096, got 1000000000"),
    *(
        (kind, {"num_labels": 10**9}, "num_labels must be at most 1000000")
        for kind in (LlamaConfig, DeepseekV2Config, ImageGPTConfig, VisionEncoderConfig, MlpProjectorConfig)
    ),
]


@pytest.mark.parametrize(("kind", "values", "message"), BOUNDS)
def test_counts_are_bounded_however_they_come(kind: type[CheckedConfig], values, message):
    start = time.process_time()
    with pytest.raises(ConfigError, match=message):
        kind(**values)
    with pytest.raises(ConfigError, match=message):
        kind.from_dict(values)
    assert time.process_time() - start < 1


def test_labels_set_later_are_bounded_too():
    with pytest.raises(ConfigError, match="num_labels must be at most 1000000"):
        LlamaConfig().num_labels = 10**9

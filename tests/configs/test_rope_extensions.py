"""MindFormers' seven RoPE extensions and transformers' five rope types: read, agreed, turned into one another."""

import math

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs import RopeScaling, RopeSettings
from modelwright.configs.rope_extensions import EXTEND_METHODS, Extension, read_hugging_face
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 64, "seq_length": 64}
TINY |= {"dialect": "mindformers"}
LLAMA3 = {
    "factor": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_slow": 1,
    "beta_fast": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}
FACTORS = {"PI": 4, "NTK": 4.0, "YARN": YARN, "LLAMA3": LLAMA3, "linear": {"factor": 2}}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("None", RopeSettings(10000.0, 8, 64)),
        ("PI", RopeSettings(10000.0, 8, 64, RopeScaling("linear", 4.0))),
        ("NTK", RopeSettings(40000.0, 8, 64)),
        ("linear", RopeSettings(10000.0, 8, 64, RopeScaling("linear", 2.0))),
        ("YARN", RopeSettings(10000.0, 8, 64, RopeScaling("yarn", 4.0, 16, 32.0, 1.0, 1.0, 0.0))),
        ("LLAMA3", RopeSettings(10000.0, 8, 64, RopeScaling("llama3", 8.0, 16, low_freq_factor=1.0))),
        ("DYNAMIC_NTK", RopeSettings(10000.0, 8, 64, RopeScaling("dynamic_ntk", 1.0, 64))),
    ],
)
def test_every_method_is_resolved(method, settings):
    values = TINY | {"extend_method": method, "scaling_factor": FACTORS.get(method, 1.0), "is_dynamic": True}
    config = LlamaConfig(**values)
    assert config.rope == settings
    assert LlamaConfig.from_dict(config.to_dict()) == config
    assert LlamaConfig.from_mindformers(config.to_mindformers()) == config


@pytest.mark.parametrize(
    ("parameters", "method", "factor"),
    [
        ({"rope_type": "default"}, "None", 1.0),
        ({"rope_type": "linear", "factor": 2.0}, "PI", 2.0),
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic", 2.0),
        ({"rope_type": "llama3"} | LLAMA3, "LLAMA3", LLAMA3),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            "YARN",
            YARN | {"beta_slow": 1.0, "beta_fast": 32.0},
        ),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_every_rope_type_of_transformers_is_read_and_written(parameters, method, factor, key, tmp_path):
    config = LlamaConfig(model_type="llama", max_position_embeddings=64, rope_theta=500.0, **{key: parameters})
    assert (config.rope_theta, config.extend_method, config.scaling_factor) == (500.0, method, factor)
    config.save_pretrained(tmp_path)
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path).rope_parameters
    assert theirs["rope_type"] == parameters["rope_type"]
    assert theirs["rope_theta"] == 500.0
    assert theirs.items() >= parameters.items()
    assert LlamaConfig.from_pretrained(tmp_path) == config


def test_ntk_is_written_as_a_plain_base():
    config = LlamaConfig(**TINY, extend_method="NTK", scaling_factor=4.0)
    written = config.to_dict()
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 40000.0}
    assert (written["rope_theta"], written["theta"], written["rope_scaling"]) == (40000.0, 10000.0, None)


@pytest.mark.parametrize(("mscale", "mscale_all_dim"), [(1.0, 0.0), (0.7, 0.0), (0.7, 0.5), (0.0, 1.0), (1.0, 1.0)])
def test_yarn_weighs_in_transformers_as_in_mindformers(mscale, mscale_all_dim):
    factor = YARN | {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    config = LlamaConfig(**TINY, extend_method="YARN", scaling_factor=factor)
    theirs = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_parameters=config.rope_parameters
    )
    _, weight = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs)
    grow = 0.1 * math.log(4.0)
    assert weight == pytest.approx((grow * mscale + 1) / (grow * mscale_all_dim + 1), rel=1e-12)


@given(weight=st.floats(0.5, 2.0), factor=st.floats(1.5, 64.0))
def test_an_attention_factor_is_kept_as_mscale(weight, factor):
    given_values = {"rope_type": "yarn", "factor": factor, "attention_factor": weight}
    read = read_hugging_face(given_values, 10000.0, 64, "rope_parameters")
    assert read.to_hugging_face()["attention_factor"] == pytest.approx(weight, rel=1e-12)


def test_changing_a_view_changes_the_fields():
    config = LlamaConfig(**TINY)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}
    assert (config.theta, config.extend_method, config.scaling_factor) == (7.0, "PI", 2.0)
    config.extend_method = "ntk"
    assert config.rope == RopeSettings(14.0, 8, 64)


def test_an_override_replaces_every_view_of_a_file():
    saved = LlamaConfig(**TINY, theta=500.0, extend_method="YARN", scaling_factor=YARN).to_dict()
    assert LlamaConfig.from_dict(saved, theta=9.0).rope.theta == 9.0
    assert LlamaConfig.from_dict(saved, rope_theta=9.0).extend_method == "YARN"
    assert LlamaConfig.from_dict(saved, rope_scaling=None).rope == RopeSettings(500.0, 8, 64)
    assert LlamaConfig.from_dict(saved, extend_method="None").rope == RopeSettings(500.0, 8, 64)
    linear = LlamaConfig.from_dict(saved, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 8.0})
    assert (linear.theta, linear.extend_method, linear.scaling_factor) == (8.0, "PI", 2.0)


@pytest.mark.parametrize("written", ["none", "pi", "Ntk", "yarn", "llama3", "dynamic_ntk", "LINEAR"])
def test_a_method_is_read_in_any_case(written):
    method = next(name for name in EXTEND_METHODS if name.lower() == written.lower())
    values = {"extend_method": written, "scaling_factor": FACTORS.get(method, 1.0), "is_dynamic": True}
    assert LlamaConfig(**TINY, **values).extend_method == method


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extend_method": "NTKAware"}, "one of None, PI, NTK, YARN, LLAMA3, DYNAMIC_NTK, linear; got 'NTKAware'"),
        ({"extend_method": 3}, "extend_method must be one of .*; got 3"),
        ({"scaling_factor": 2.0}, r'scaling_factor \(2.0\) says nothing with extend_method "None"'),
        ({"extend_method": "PI", "scaling_factor": {"factor": 2}}, "must be a number, got {'factor': 2}"),
        ({"extend_method": "PI", "scaling_factor": 0}, "scaling_factor must be above 0, got 0"),
        ({"extend_method": "YARN", "scaling_factor": 2.0}, "must be a dict with factor, .*; got 2.0"),
        ({"extend_method": "LLAMA3", "scaling_factor": {"factor": 8}}, "low_freq_factor, .* is missing"),
        ({"extend_method": "YARN", "scaling_factor": YARN | {"alpha": 1}}, "it does not take alpha"),
        (
            {"extend_method": "LLAMA3", "scaling_factor": LLAMA3 | {"factor": 0.5}},
            "factor must be a number of at least 1, got 0.5",
        ),
        (
            {"extend_method": "LLAMA3", "scaling_factor": LLAMA3 | {"high_freq_factor": 0.5}},
            r"high_freq_factor \(0.5\) must be greater than low_freq_factor \(1.0\)",
        ),
        (
            {"extend_method": "YARN", "scaling_factor": YARN | {"beta_fast": 0.5}},
            r"beta_fast \(0.5\) must be greater than beta_slow \(1\)",
        ),
        (
            {"extend_method": "YARN", "scaling_factor": YARN | {"original_max_position_embeddings": 16.0}},
            "original_max_position_embeddings must be an int of at least 1, got 16.0",
        ),
        ({"extend_method": "DYNAMIC_NTK"}, "needs is_dynamic=True, got is_dynamic=False"),
        ({"extend_method": "DYNAMIC_NTK", "scaling_factor": 2, "is_dynamic": True}, r"\(2.0\) says nothing with"),
        ({"theta": 0}, "rope_theta must be a number above 0, got 0"),
        ({"theta": 1.0, "rope_theta": 2.0}, r"theta \(1.0\) contradicts rope_theta \(2.0\)"),
        ({"rope_parameters": {"rope_type": "longrope"}}, '"default", "linear", .*; got "longrope"'),
        ({"rope_parameters": {"rope_type": "linear"}}, r'of type "linear" needs "factor", got only \[\]'),
        ({"rope_parameters": {"factor": 2.0}}, r"""needs "rope_type" \(or "type"\), got only \['factor'\]"""),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, 'type "linear" contradicts rope_type "yarn"'),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 1}}, r"takes \['factor'\], got \"beta_fast\""),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1, for heads turn whole here; got 0.5",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate must be True"),
        (
            {"rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 2.0}},
            r"rope_theta \(1.0\) contradicts rope_theta inside rope_parameters \(2.0\)",
        ),
        (
            {"extend_method": "PI", "scaling_factor": 3, "rope_scaling": {"type": "linear", "factor": 2.0}},
            r'rope_scaling \(.*\) contradicts extend_method "PI" with scaling_factor \(3.0\)',
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 3.0},
            },
            r"rope_scaling \(.*2.0.*\) contradicts rope_parameters \(.*3.0.*\)",
        ),
    ],
)
def test_a_wrong_rope_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig(**TINY, **values)


def test_what_mindformers_cannot_say_is_not_written():
    config = LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    assert config.rope.scaling == RopeScaling("dynamic", 2.0, 64)
    with pytest.raises(ConfigError, match='rope type "dynamic" has no extend_method in MindFormers'):
        config.to_mindformers()


@given(
    theta=st.floats(1.0, 1e7, exclude_min=True),
    factor=st.floats(1.0, 100.0) | st.integers(1, 100),
    method=st.sampled_from(["PI", "NTK", "linear", "YARN", "LLAMA3", "dynamic"]),
)
def test_any_rope_is_the_same_through_either_dialect(theta, factor, method):
    by_key = FACTORS[method] | {"factor": factor} if isinstance(FACTORS.get(method), dict) else factor
    extension = Extension(theta, method, by_key)
    back = read_hugging_face(extension.to_hugging_face(), 1.0, 64, "rope_parameters")
    assert back.settings(8, 64) == extension.settings(8, 64)

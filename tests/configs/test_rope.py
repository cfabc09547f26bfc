"""RoPE settings: both dialects, their agreement and every refused value."""

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs import RopeScaling, RopeSettings
from modelwright.configs.rope import parse_rope_scaling
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("values", "scaling"),
    [
        (None, None),
        ({}, None),
        ({"rope_type": "default", "rope_theta": 10000.0}, None),
        ({"type": "linear", "factor": 3}, RopeScaling("linear", 3.0)),
        ({"rope_type": "dynamic", "factor": 2.0}, RopeScaling("dynamic", 2.0, 2048)),
        (YARN, RopeScaling("yarn", 40.0, 4096, 32.0, 1.0, 1.0, 0.0)),
        (
            YARN | {"rope_type": "yarn", "beta_fast": 16, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 0.5},
            RopeScaling("yarn", 40.0, 4096, 16.0, 2.0, 0.707, 0.5),
        ),
        (YARN | {"mscale": None}, RopeScaling("yarn", 40.0, 4096)),
    ],
)
def test_every_method_is_read(values, scaling):
    assert parse_rope_scaling(values, max_position_embeddings=2048) == scaling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "longrope", "factor": 2}, 'must be one of "default", "linear", "dynamic", "yarn"; got "longrope"'),
        ({"type": "yarn", "rope_type": "linear", "factor": 2}, 'type "yarn" contradicts rope_type "linear"'),
        ({"factor": 2}, r"""needs "type" \(or "rope_type"\), got only \['factor'\]"""),
        ({"type": "linear"}, r'of type "linear" needs "factor", got only \[\]'),
        ({"type": "yarn", "factor": 2}, r"""needs "original_max_position_embeddings", got only \['factor'\]"""),
        ({"type": "linear", "factor": 0.5}, "factor must be a number of at least 1, got 0.5"),
        ({"type": "linear", "factor": "2"}, "factor must be a number of at least 1, got '2'"),
        ({"type": "linear", "factor": True}, "factor must be a number of at least 1, got True"),
        ({"type": "linear", "factor": float("nan")}, "factor must be a number of at least 1, got nan"),
        (YARN | {"original_max_position_embeddings": 4096.0}, "must be an int of at least 1, got 4096.0"),
        (YARN | {"mscale": -1}, "mscale must be a number of at least 0, got -1"),
        (YARN | {"beta_fast": 1, "beta_slow": 2}, r"beta_fast \(1\) must be greater than beta_slow \(2\)"),
        (YARN | {"mscale_all_dims": 1}, 'unknown key "mscale_all_dims" in rope_scaling; did you mean "mscale_all_dim"'),
        ({"type": "linear", "factor": 2, "mscale": 1}, r"""of type "linear" takes \['factor'\], got "mscale\""""),
        ("yarn", "rope_scaling must be a dict or None, got 'yarn'"),
    ],
)
def test_a_wrong_scaling_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_rope_scaling(values, max_position_embeddings=2048)
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config(rope_scaling=values)


def test_a_config_speaks_both_dialects():
    config = DeepseekV2Config(rope_theta=500, rope_scaling=YARN)
    assert config.rope_scaling == YARN
    assert config.rope_parameters == {
        "rope_theta": 500,
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
    }
    assert config.rope == RopeSettings(500.0, 64, 2048, RopeScaling("yarn", 40.0, 4096))
    from_v5 = DeepseekV2Config(rope_parameters=config.rope_parameters)
    assert (from_v5.rope_theta, from_v5.rope_scaling, from_v5.rope) == (500, YARN, config.rope)


def test_without_scaling_both_dialects_say_so():
    config = DeepseekV2Config()
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert config.rope == RopeSettings(10000.0, 64, 2048, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 2.0}},
            r"rope_theta \(1.0\) contradicts rope_theta inside rope_parameters \(2.0\)",
        ),
        (
            {"rope_theta": 1.0, "rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 2.0}},
            r"rope_theta \(1.0\) contradicts rope_theta inside rope_scaling \(2.0\)",
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 2}},
            r"rope_scaling \({'type': 'yarn'.*}\) contradicts rope_parameters \({'rope_type': 'linear', 'factor': 2}\)",
        ),
        ({"rope_theta": 0}, "rope_theta must be a number above 0, got 0"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number above 0, got '1e4'"),
        ({"rope_theta": float("inf")}, "rope_theta must be a number above 0, got inf"),
    ],
)
def test_views_that_disagree_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config(**values)


def test_a_view_that_is_set_brings_the_others_along():
    config = DeepseekV2Config(rope_theta=500.0, rope_scaling=YARN)
    config.rope_scaling = None
    assert config.rope == RopeSettings(500.0, 64, 2048)
    assert config.rope_parameters == {"rope_theta": 500.0, "rope_type": "default"}
    config.rope_theta = 7.0
    assert (config.rope.theta, config.rope_parameters["rope_theta"]) == (7.0, 7.0)  # type: ignore[index]
    config.rope_parameters = {"rope_type": "linear", "factor": 3.0}
    assert config.rope == RopeSettings(7.0, 64, 2048, RopeScaling("linear", 3.0))
    assert config.rope_scaling == {"type": "linear", "factor": 3.0}
    config.check()
    with pytest.raises(ConfigError, match=r'needs "factor"'):
        config.rope_parameters = {"rope_type": "linear"}


@pytest.mark.parametrize("make", [DeepseekV2Config, LlamaConfig])
def test_an_entry_of_a_view_is_read_only(make):
    config = make(rope_parameters={"rope_type": "linear", "factor": 3.0})
    for entry in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config):
        for view in ("rope_parameters", "rope_scaling"):
            with pytest.raises(ConfigError, match=rf"the entries of {view} are read-only, .* set the whole of it"):
                getattr(entry, view)["factor"] = 10.0
    with pytest.raises(ConfigError, match="read-only"):
        config.rope_parameters.pop("factor")
    config.rope_parameters = config.rope_parameters | {"factor": 10.0}
    assert config.rope.scaling == RopeScaling("linear", 10.0)
    assert type(config.to_dict()["rope_parameters"]) is dict
    assert make.from_dict(config.to_dict()) == config == make(**json.loads(config.to_json_string()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": 1.0, "rope_scaling": YARN}, "rope_theta must be above 1 with yarn, .* got 1"),
        ({"rope_scaling": YARN | {"beta_slow": 0}}, "rope_scaling beta_slow must be a number above 0, got 0"),
        ({"qk_rope_head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}}, "width must be above 2 .* got 2"),
        ({"rope_theta": 10**400}, "rope_theta must be a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor must be a number of at least 1"),
    ],
)
def test_what_would_divide_by_zero_or_overflow_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config(**values)


def test_an_override_replaces_every_view_of_the_file():
    saved = DeepseekV2Config(rope_theta=500.0, rope_scaling=YARN).to_dict()
    assert DeepseekV2Config.from_dict(saved, rope_theta=9.0).rope == RopeSettings(
        9.0, 64, 2048, RopeScaling("yarn", 40.0, 4096)
    )
    assert DeepseekV2Config.from_dict(saved, rope_scaling=None).rope == RopeSettings(500.0, 64, 2048, None)
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 8.0}
    linear = DeepseekV2Config.from_dict(saved, rope_parameters=parameters)
    assert linear.rope == RopeSettings(8.0, 64, 2048, RopeScaling("linear", 2.0))


def test_the_callers_dict_is_left_alone():
    given_scaling = dict(YARN)
    DeepseekV2Config(rope_scaling=given_scaling)
    assert given_scaling == YARN


@pytest.mark.slow
@given(
    theta=st.floats(1.0, 1e7, exclude_min=True),
    factor=st.floats(1.0, 100.0) | st.integers(1, 100),
    kind=st.sampled_from(["linear", "dynamic", "yarn"]),
    mscale=st.floats(0.0, 2.0),
)
def test_any_rope_is_the_same_through_either_dialect(theta, factor, kind, mscale):
    extra = {"original_max_position_embeddings": 64, "mscale_all_dim": mscale} if kind == "yarn" else {}
    config = DeepseekV2Config(rope_theta=theta, rope_scaling={"type": kind, "factor": factor, **extra})
    assert DeepseekV2Config(rope_parameters=config.rope_parameters).rope == config.rope
    assert DeepseekV2Config.from_dict(config.to_dict()).rope == config.rope
    assert config.rope.scaling is not None
    assert (config.rope.theta, config.rope.scaling.factor) == (theta, factor)

"""A key changes what it names and nothing else, in every family and dialect."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.names import ALIASES
from tests.configs.test_effects import BASES, VALUES, changed

DERIVED: dict[Any, dict[str, set[str]]] = {
    LlamaConfig: {
        "num_attention_heads": {"num_key_value_heads"},  # as many, where they are left out
        "hidden_size": {"intermediate_size"},  # MindFormers derives the width that is left out
        "multiple_of": {"intermediate_size"},
        "ffn_dim_multiplier": {"intermediate_size"},
        "seq_length": {"max_position_embeddings"},  # in MindFormers' dialect, where it is left out
        "max_position_embeddings": {"seq_length"},  # in Hugging Face's
        "compute_dtype": {"rotary_dtype"},  # in Hugging Face's: it rotates in the type it computes in
        "param_init_type": {"norm_init_type"},  # in Hugging Face's: it has one type of storage
    },
    DeepseekV2Config: {  # three views of one thing
        "rope_theta": {"rope_parameters"},
        "rope_scaling": {"rope_parameters"},
        "rope_parameters": {"rope_theta", "rope_scaling"},
    },
    DeepseekVLV2Config: {},
    ImageGPTConfig: {},
}
"""The stored fields that follow from another where they are left out."""
FAMILIES = list(DERIVED)
each_base = pytest.mark.parametrize(
    ("family", "base"), [pytest.param(f, b, id=f"{f.__name__}.{b}") for f in FAMILIES for b in BASES[f]]
)


def stored(config: CheckedConfig) -> dict[str, Any]:
    """The fields that our classes declare, parts as dicts."""
    values = {name: getattr(config, name) for name in own_fields(type(config))}
    return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in values.items()}


def own_fields(family: Any) -> list[str]:
    """The fields that our classes declare; transformers' own follow its rules."""
    theirs = {each.name for each in fields(PreTrainedConfig)}
    return [each.name for each in fields(family) if each.name not in theirs]


def defaults(family: Any, base: dict[str, Any]) -> dict[str, Any]:
    """The default of every field that may be stated, under every name it has."""
    config = family(**{key: base[key] for key in ("dialect",) if key in base})
    values = {name: getattr(config, name) for name in own_fields(family)}
    return values | ({alias: values[name] for alias, name in ALIASES.items()} if family is LlamaConfig else {})


@pytest.mark.one_in(4)
@each_base
def test_a_key_at_its_default_changes_nothing_else(family, base):
    keys = BASES[family][base]
    config = family(**keys)
    said = set(keys) | {ALIASES.get(key, key) for key in keys}
    for name, default in defaults(family, keys).items():
        field = ALIASES.get(name, name) if family is LlamaConfig else name
        if field in said or getattr(config, field) != default:
            continue  # stated already, or derived: no default of its own here
        assert stored(family(**keys | {name: default})) == stored(config), name


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("family", "keys"),
    [pytest.param(f, {}, id=f.__name__) for f in FAMILIES]
    + [pytest.param(LlamaConfig, {"dialect": "mindformers"}, id="LlamaConfig.of MindFormers")],
)
def test_a_key_alone_changes_only_what_follows_from_it(family, keys):
    _change_each(family, keys)


@pytest.mark.one_in(4)
@each_base
def test_a_key_at_another_value_changes_only_what_follows_from_it(family, base):
    _change_each(family, BASES[family][base])


def _change_each(family: Any, keys: dict[str, Any]) -> None:
    before = stored(family(**keys))
    for name, value in VALUES[family].items():
        try:
            after = stored(family(**changed(keys, name, value)))
        except ConfigError:
            continue
        moved = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        field = name.split(".")[0]
        assert moved <= {field} | DERIVED[family].get(field, set()), (name, moved)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["hugging_face", "mindformers"]), st.sets(st.sampled_from(sorted(VALUES[LlamaConfig]))))
def test_no_set_of_keys_changes_the_dialect(dialect, names):
    config: dict[str, Any] = {"dialect": dialect}
    for name in names:
        try:
            LlamaConfig(**changed(config, name, VALUES[LlamaConfig][name]))
        except ConfigError:
            continue
        config = changed(config, name, VALUES[LlamaConfig][name])
    built, plain = LlamaConfig(**config), LlamaConfig(dialect=dialect)
    assert built.dialect == dialect
    named = {name.split(".")[0] for name in names}
    followed = set().union(*(DERIVED[LlamaConfig].get(name, set()) for name in named))
    for name in set(own_fields(LlamaConfig)) - named - followed:
        assert getattr(built, name) == getattr(plain, name), name

"""The one call that tells transformers' Auto classes about the families that transformers lacks."""

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoProcessor

from modelwright.families import Family, families, resolve


def register() -> None:
    """Tell transformers' Auto classes about every family that it lacks, such as ``deepseek_vl_v2``.

    A version of transformers that has the family is left alone.
    """
    for family in families():
        register_with_auto(family)


def register_with_auto(family: Family) -> None:
    """Tell the Auto classes that the record names about one family; nothing where it names none."""
    if not family.auto_classes:
        return
    name, config_class = family.model_type, family.config_class
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] is not config_class:
        return
    AutoConfig.register(name, config_class, exist_ok=True)
    for auto in family.auto_classes:
        getattr(transformers, auto).register(config_class, family.causal_class, exist_ok=True)
    if family.processor_class is not None:
        AutoProcessor.register(config_class, resolve(family.processor_class), exist_ok=True)

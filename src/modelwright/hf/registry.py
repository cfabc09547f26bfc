"""Tells transformers' Auto classes about our configs, and about the families that transformers lacks."""

import re

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoProcessor

from modelwright.families import Family, families, resolve


def register() -> None:
    """Tell transformers' Auto classes that our configs are of our models, and read families such as ``deepseek_vl_v2``.

    A version of transformers that has a family is left alone: its own configs, and folders, are of its own models.
    """
    for family in families():
        register_with_auto(family)


def register_with_auto(family: Family) -> None:
    """Tell the Auto classes of one family's configs; where the record names some, that they read its folders too."""
    for architecture in family.architectures:
        auto = getattr(transformers, _auto_class(architecture), None)
        if auto is not None:
            auto.register(family.config_class, family.model_class(architecture), exist_ok=True)
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


def _auto_class(architecture: str) -> str:
    """The Auto class of a model by its name: ``AutoModelForCausalLM`` of ``LlamaForCausalLM``."""
    kind = re.search(r"(Model|For[A-Z]\w*)$", architecture)
    return "" if kind is None else "AutoModel" + kind[0].removeprefix("Model")

"""`CheckedConfig`, the one validating way into every configuration; it holds no family's rules and no tensor code."""

import copy
import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig

from modelwright.configs.field_types import ReadOnlyDict, as_filed, describe, fits, plain, shown, torch_dtype
from modelwright.configs.quantization import (
    READ_PROGRAMS,
    is_foreign,
    is_transformers_quantization,
    method_of,
    program_of,
)
from modelwright.errors import ConfigError

_READ = "_read_values"
MOST_LAYERS = 4096
"""Layers of one stack: what is said of each layer is listed, and a list must end. Published models have 126 at most."""
MOST_EXPERTS = 10**6
"""Routed experts of all layers together; published models have 25,000 at most."""
MOST_LABELS = 10**6
"""Classes, whose names transformers lists."""
DEEPEST = 32
"""How deep a config may be nested; those of all families are at most six."""
MISSPELT = 0.8  # difflib ratio from which an unknown key counts as one of ours, misspelt

# Keys of other models' configs that look like a misspelling of one of ours and are not.
_NEIGHBOURS = frozenset({"sep_token_id", "eod_token_id", "unk_token_id", "cls_token_id", "mask_token_id"})
# Keys that say where a file comes from.
_NOTES = frozenset({"auto_map", "mindformers_version", "transformers_version"})
# Constructor keys of transformers that are no attribute of its config class.
_TRANSFORMERS_KEYS = frozenset({"num_labels", "attn_implementation", "experts_implementation", "output_attentions"})
# What transformers raises on bad values; its strict errors are no `ValueError`.
_BAD_VALUES = (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError)


class CheckedConfig(PreTrainedConfig):
    """A transformers config that is checked however it is built, and refuses misspelt keys that a person typed.

    The constructor, `from_dict`, `from_pretrained` and `from_json_file` first merge overrides into the values, then
    `normalise` them (aliases, equivalent views), build, and end in `check`. A rule that does not hold raises
    `ConfigError` with the rule and both values.

    The keys of the constructor and of overrides are typed by a person: one that looks like a misspelt field is refused.
    The keys of a file (`from_dict`, `from_pretrained`, `from_json_file`) were written by a program that may know
    more than we do: all of them are kept, saved again and listed by `fields_without_effect`, except the generation
    settings that transformers itself moves to `GenerationConfig`.

    A key changes the field it names and nothing else. `dtype` is a `torch.dtype`, as in transformers.

    Attributes may be set afterwards, as transformers does; `check` runs again when a model is built and on saving.
    A family overrides `normalise`, `merge`, `check_rules` and `idle_fields`.
    """

    architectures: list[str] | None = None  # redeclared so that its type is checked

    sub_configs: ClassVar[dict[str, type["CheckedConfig"]]] = {}
    aliases: ClassVar[frozenset[str]] = frozenset()
    """Accepted constructor keys that are not fields: `normalise` or a property setter consumes them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # transformers makes each subclass a dataclass here, with its own __init__
        cls.__init__ = _checked(cls.__init__)
        cls.__eq__ = CheckedConfig.__eq__

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build from `config_dict` with `kwargs` as overrides, which are checked together with it.

        With `return_unused_kwargs=True` returns `(config, unused)`: `unused` are the keys that are neither ours nor
        in `config_dict`. Without it such keys are kept in the config, as the constructor keeps them.
        """
        require_shallow(config_dict, cls.__name__)
        return_unused = kwargs.pop("return_unused_kwargs", False)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_from_auto", "_from_pipeline")}
        values, strange = cls.without_strange_keys(copy.deepcopy(config_dict))
        unused = {key: value for key, value in kwargs.items() if not cls._takes(key, config_dict, return_unused)}
        overrides = {key: value for key, value in kwargs.items() if key not in unused}
        cls._refuse_misspelt(unused)
        config = cls(**cls.merge(values, overrides))
        config.keep_strange_keys(strange)
        config.keep_read_values(config_dict)
        return (config, unused) if return_unused else config  # type: ignore[return-value]  # transformers' contract

    @classmethod
    def from_json_file(cls, json_file: str | PathLike) -> Self:
        """The config in a JSON file, which another program may have written."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike) -> dict[str, Any]:
        """As transformers', of a file that may begin with a byte order mark."""
        try:
            return cls._decode_special_floats(json.loads(Path(json_file).read_text(encoding="utf-8-sig")))
        except RecursionError as error:
            raise ConfigError(f"{json_file} is nested too deeply") from error

    @classmethod
    def without_strange_keys(cls, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A file's `values` in two: what the constructor takes, and what it would refuse.

        That is keys that look misspelt, and the quantization of a program that nobody knows. A whole float is taken as
        the int that its field means.
        """
        strange = {key: values[key] for key in values if cls._meant(key) is not None}
        if is_foreign(quantized := values.get("quantization_config")) and not is_transformers_quantization(quantized):
            strange["quantization_config"] = quantized
        own = own_fields(cls)
        names = {key: cls.attribute_map.get(key, key) for key in values if key not in strange}
        known = {key: as_filed(values[key], own.get(name)) for key, name in names.items()}
        for name, config_class in cls.sub_configs.items():
            if isinstance(known.get(name), dict):
                known[name], inside = config_class.without_strange_keys(known[name])
                strange |= {name: inside} if inside else {}
        return known, strange

    def keep_strange_keys(self, strange: Mapping[str, Any]) -> None:
        """Keep the second of what `without_strange_keys` returned, so that it is listed and saved again."""
        for key, value in strange.items():
            if key in self.sub_configs:
                getattr(self, key).keep_strange_keys(value)
            else:
                setattr(self, key, value)

    def keep_read_values(self, values: Mapping[str, Any]) -> None:
        """Remember what a file said, for `to_diff_dict`."""
        said = {key: value for key, value in values.items() if not key.startswith("_")}
        vars(self)[_READ] = copy.deepcopy(said)
        for name in self.sub_configs:
            if isinstance(inside := said.get(name), Mapping):
                getattr(self, name).keep_read_values(inside)

    def read_values(self) -> Mapping[str, Any]:
        """What the file said that this config was read from; nothing where there was none."""
        return vars(self).get(_READ, {})

    def essential_keys(self) -> Iterable[str]:
        """What a config.json always says, where it is not to say all; see `to_diff_dict`."""
        return ()

    def as_written(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a config.json as the family writes them; the inverse of `normalise` where it matters."""
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to a config.json: the keys of the file it was read from, and what that would not say.

        The file's names of things are kept. What is read from the result is equal to this config.
        """
        every = super().to_diff_dict()
        read, essential = self.read_values(), set(self.essential_keys())
        if not read and not essential:
            return every
        parts = {name: getattr(self, name) for name in self.sub_configs if name in read}
        inside = {name: part.to_diff_dict() for name, part in parts.items() if part.read_values()}
        written = self._written(every | {name: _without_version(part) for name, part in inside.items()}, essential)
        return every if written is None else written

    def _written(self, every: Mapping[str, Any], essential: set[str]) -> dict[str, Any] | None:
        """As few of `every` value as `to_diff_dict` promises; None where what is read from them is another config."""
        read = self.read_values()
        always = {"model_type", "transformers_version", "dtype", "quantization_config", "architectures", *essential}
        values = {key: value for key, value in every.items() if key in read or key in always}
        if "torch_dtype" in read and "dtype" not in read and "dtype" in values:
            values["torch_dtype"] = values.pop("dtype")
        others = {key: value for key, value in read.items() if key not in every and key not in ("torch_dtype", "dtype")}
        for chosen in (others | values, values, every):
            written = self._completed(self.as_written(dict(chosen)))
            if written is not None:
                return written
        return None

    def _completed(self, values: dict[str, Any]) -> dict[str, Any] | None:
        """`values` with those of this config that would be read otherwise; None where that gives another config."""
        wanted = self._identity()
        for _ in range(3):
            try:
                found = type(self).from_dict(values)._identity()
            except ConfigError:
                return None
            if found == wanted:
                return values
            missing = {key: value for key, value in wanted.items() if found.get(key) != value and key not in values}
            if not missing:
                return None
            values = values | missing
        return None

    @classmethod
    def merge(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """`values` under `overrides`: nested configs merge key by key, equivalent keys replace each other."""
        values, overrides = dict(values), dict(overrides)
        for key in ("torch_dtype", "dtype"):
            dtype = overrides.pop(key, None)
            if dtype is not None and dtype != "auto":
                values["dtype"] = dtype
        if "num_labels" in overrides and len(values.get("id2label") or ()) != overrides["num_labels"]:
            values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
        for name, config_class in cls.sub_configs.items():
            if isinstance(values.get(name), dict) and isinstance(overrides.get(name), dict):
                values[name] = config_class.merge(values[name], overrides.pop(name))
        return values | overrides

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The constructor's values with misspelt keys refused, aliases resolved, and numbers and tuples made plain."""
        model_type = values.get("model_type", cls.model_type)
        require(model_type == cls.model_type, f'model_type must be "{cls.model_type}" here, got "{model_type}"')
        cls._refuse_misspelt(values)
        own = own_fields(cls)
        require_labels(values.get("num_labels"))
        if "dtype" in values:
            values = values | {"dtype": torch_dtype(values["dtype"])}
        if "torch_dtype" in values:
            values = values | {"torch_dtype": torch_dtype(values["torch_dtype"])}
        if not is_transformers_quantization(values.get("quantization_config")):
            values = {"quant_config" if key == "quantization_config" else key: values[key] for key in values}
        return {key: plain(value, own.get(key)) for key, value in values.items() if key != "model_type"}

    def check(self) -> None:
        """Check every field's type, then the family's rules; raises `ConfigError`."""
        for name, expected in own_fields(type(self)).items():
            value = getattr(self, name)
            if not fits(value, expected):
                raise ConfigError(f"{name} must be {describe(expected)}, got {shown(value)}")
        self.check_rules()

    def check_rules(self) -> None:
        """The rules of one family; the fields' types already hold here."""

    def not_for_transformers(self) -> str | None:
        """Why a checkpoint of this config is read by modelwright alone; None where transformers reads it too."""
        return None

    def beyond_transformers(self) -> str | None:
        """What a folder for transformers must not be asked for: modules that no model of it has; None where it has all.

        Part of `not_for_transformers`, whose other reasons transformers tells by missing or unexpected tensors.
        """
        return None

    def idle_fields(self) -> dict[str, str]:
        """The fields of one family that nothing reads with the config's other values, each with the reason."""
        return {}

    def run_values(self) -> dict[str, Any]:
        """What this config states of a training run: keys of a `RunConfig` by path; nothing in most families."""
        return {}

    def fields_without_effect(self) -> dict[str, str]:
        """What was set and changes nothing on torch, each by name (with dots inside a part), with the reason.

        These are the fields that differ from their defaults while nothing reads them, given this config's other
        values; the fields that only the trainer will read; and the keys of a file that are no field.
        Fields that transformers declares for every model are its own and are not listed.
        """
        default = self.defaults()
        idle = self.idle_fields()
        listed = {name: idle[name] for name in idle if _value_at(self, name) != _value_at(default, name)}
        listed |= {name: self._why_unknown(name) for name in self.unknown_keys()}
        if is_foreign(quantized := getattr(self, "quantization_config", None)):
            read = (
                "read as the numbers that they stand for" if program_of(quantized) in READ_PROGRAMS else "not read here"
            )
            listed["quantization_config"] = f'weights stored by "{method_of(quantized)}" are {read}'
        for part in self.sub_configs:
            inside = getattr(self, part).fields_without_effect()
            listed |= {f"{part}.{name}": reason for name, reason in inside.items()}
        return listed

    def defaults(self) -> Self:
        """The config whose fields were all left out."""
        return type(self)()

    def unknown_keys(self) -> dict[str, Any]:
        """What a file said beyond the fields, less the notes on where the file comes from."""
        known = self._known_keys() | _NOTES | {"quant_config", "quantization_config"}
        return {
            key: value
            for key, value in vars(self).items()
            if key not in known and not key.startswith("_") and not hasattr(PreTrainedConfig, key)
        }

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As transformers', into a folder.

        Raises:
            ConfigError: the config breaks a rule, holds what belongs to a generation config, or the place is a file.
        """
        with _as_config_error(type(self), (StrictDataclassError, AssertionError, ValueError)):
            super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def validate(self) -> None:
        """transformers' own validation, which `save_pretrained` runs, after ours."""
        self.check()
        with _as_config_error(type(self)):
            super().validate()  # type: ignore[misc]  # `@strict` adds it at run time

    def to_dict(self) -> dict[str, Any]:
        """transformers' own; a quantization that is no field is called as in a `config.json`, `quantization_config`."""
        values = super().to_dict()
        values.pop(_READ, None)
        values = {key: dict(value) if isinstance(value, ReadOnlyDict) else value for key, value in values.items()}
        if "quant_config" in values and "quant_config" not in own_fields(type(self)):
            values["quantization_config"] = values.pop("quant_config")
        return values

    def require_at_least(self, least: int | float, *names: str) -> None:
        """Raise `ConfigError` for the first of the fields `names` that is below `least`; `None` passes."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value >= least, f"{name} must be at least {least}, got {value}")

    def require_at_most(self, most: int, *names: str) -> None:
        """Raise `ConfigError` for the first of the fields `names` that is above `most`; `None` passes."""
        for name in names:
            value = getattr(self, name)
            require(value is None or value <= most, f"{name} must be at most {most}, got {value}")

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_labels":
            require_labels(value)
        if key == "dtype":
            value = torch_dtype(value)
        elif (expected := own_fields(type(self)).get(key)) is not None:
            value = plain(value, expected)
        with _as_config_error(type(self), (StrictDataclassError,)):
            super().__setattr__(key, value)

    def __eq__(self, other: object) -> bool:
        """Same class and same values; where each was read from does not count."""
        if not isinstance(other, CheckedConfig) or type(self) is not type(other):
            return False
        return self._identity() == other._identity()

    def _identity(self) -> dict[str, Any]:
        values = self.to_dict()
        values.pop("_name_or_path", None)
        return values

    @classmethod
    def _takes(cls, key: str, config_dict: dict[str, Any], return_unused: bool) -> bool:
        """Whether an override belongs to the config; leading underscores are transformers' own notes to itself."""
        if key in cls._known_keys() or key in config_dict:
            return True
        return not return_unused and not key.startswith("_")

    @classmethod
    def _known_keys(cls) -> set[str]:
        names = {field.name for field in fields(cls)}
        return names | cls.aliases | _TRANSFORMERS_KEYS | {"torch_dtype", "name_or_path"}

    @classmethod
    def _refuse_misspelt(cls, keys: Iterable[str]) -> None:
        for key in keys:
            if (meant := cls._meant(key)) is not None:
                raise ConfigError(f'unknown key "{key}"; did you mean "{meant}"?')

    @classmethod
    def _meant(cls, key: str) -> str | None:
        """The field that an unknown `key` looks like; None for a key that is known or looks like none."""
        if key in cls._known_keys() | _NEIGHBOURS or key.startswith("_") or hasattr(PreTrainedConfig, key):
            return None
        match = difflib.get_close_matches(key, [*own_fields(cls), *cls.aliases], n=1, cutoff=MISSPELT)
        return match[0] if match else None

    def _why_unknown(self, key: str) -> str:
        meant = self._meant(key)
        return "no field of this family" if meant is None else f'no field of this family; did you mean "{meant}"?'


def _without_version(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "transformers_version"}


def _value_at(config: Any, name: str) -> Any:
    """The value of a field, or of a field inside a part: `parallel_config.swap.swap`."""
    return functools.reduce(getattr, name.split("."), config)


def require(holds: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless the rule holds."""
    if not holds:
        raise ConfigError(message)


def require_shallow(values: Any, name: str) -> None:
    """Raise `ConfigError` where dicts and lists hold each other more than `DEEPEST` deep, so that none need recurse."""
    level, seen = [values], set()
    for _ in range(DEEPEST):
        inside = (each for value in level for each in (value.values() if isinstance(value, Mapping) else value))
        level = [each for each in inside if isinstance(each, Mapping | list) and id(each) not in seen]
        seen |= {id(each) for each in level}
        if not level:
            return
    raise ConfigError(f"{name} is nested deeper than {DEEPEST} levels")


def require_labels(value: Any) -> None:
    """Raise `ConfigError` where `num_labels` is a number beyond `MOST_LABELS`."""
    require(not isinstance(value, int) or value <= MOST_LABELS, f"num_labels must be at most {MOST_LABELS}")


def require_experts(name: str, experts: int, layers: int) -> None:
    """Raise `ConfigError` where so many experts in each of so many layers are more than `MOST_EXPERTS`."""
    require(
        experts * layers <= MOST_EXPERTS,
        f"{name} ({experts}) x the layers ({layers}) must be at most {MOST_EXPERTS}",
    )


def require_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`, listing them."""
    allowed = list(allowed)
    require(value in allowed, f'{name} must be one of {", ".join(map(_quoted, allowed))}; got "{value}"')


def require_divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    """Raise `ConfigError` unless `divisor` divides `value`, naming both."""
    require(value % divisor == 0, f"{name} ({value}) must be divisible by {divisor_name} ({divisor})")


def _quoted(value: str) -> str:
    return f'"{value}"'


def _checked(build: Callable[..., None]) -> Callable[..., None]:
    """`build`, a config's `__init__`, between `normalise` and `check`."""

    @functools.wraps(build)
    def __init__(self: CheckedConfig, **values: Any) -> None:
        with _as_config_error(type(self)):
            build(self, **self.normalise(values))
        self.check()

    return __init__


@contextmanager
def _as_config_error(cls: type, kinds: tuple[type[Exception], ...] = _BAD_VALUES) -> Iterator[None]:
    """Turn what transformers raises on bad values into `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except kinds as error:
        raise ConfigError(f"{cls.__name__}: {' '.join(str(error).split())}") from error


@functools.cache
def own_fields(cls: type[CheckedConfig]) -> dict[str, Any]:
    """Field name to type, for the fields that our classes declare (transformers checks its own)."""
    names = {field.name for field in fields(cls)}
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, CheckedConfig)]
    annotations = [inspect.get_annotations(owner, eval_str=True) for owner in owners]
    return {name: kind for each in annotations for name, kind in each.items() if name in names}

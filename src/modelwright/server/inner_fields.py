"""Fields inside a request that nobody knows: of messages, their parts, options, tools and forms of answers.

Structs are known by their own types, plain objects by the schemas that describe them.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from msgspec import inspect

from modelwright.server.field_schemas import Schema, objects_of


def unknown_inside(value: Any, kind: type) -> Iterator[str]:
    """The paths of unknown fields below the first level of a request, which may still be malformed.

    Args:
        kind: the Struct that the request becomes.
    """
    described = _described(kind)
    if isinstance(value, dict):
        names = {field.encode_name for field in described.fields}
        yield from _fields({name: each for name, each in value.items() if name in names}, described, "")


@lru_cache(16)
def _described(kind: type) -> inspect.StructType:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType), "requests are Structs"
    return found


def _walk(value: Any, kind: inspect.Type, path: str) -> Iterator[str]:
    if isinstance(kind, inspect.Metadata):
        yield from _walk(value, kind.type, path)
    elif isinstance(value, list):
        items = [each for each in _choices(kind) if isinstance(each, inspect.ListType)]
        for number, each in enumerate(value if items else ()):
            yield from _walk(each, items[0].item_type, f"{path}[{number}]")
    elif isinstance(value, dict):
        struct = _struct(value, [each for each in _choices(kind) if isinstance(each, inspect.StructType)])
        if struct is not None:
            yield from _fields(value, struct, f"{path}.")


def _fields(value: dict[str, Any], struct: inspect.StructType, path: str) -> Iterator[str]:
    """Of an object that is a Struct: `path` is what stands before the names of its fields."""
    types = {field.encode_name: field.type for field in struct.fields}
    objects = objects_of(struct.cls)
    for name, each in value.items():
        if name in types:
            yield from _walk(each, types[name], f"{path}{name}")
            if name in objects:
                yield from _unknown_in(each, objects[name], f"{path}{name}")
        elif name != struct.tag_field:
            yield f"{path}{name}"


def _choices(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _struct(value: dict[str, Any], structs: list[inspect.StructType]) -> inspect.StructType | None:
    """The one that an object is, by its tag."""
    return next((each for each in structs if each.tag_field is None or value.get(each.tag_field) == each.tag), None)


def _unknown_in(value: Any, schema: Schema, path: str) -> Iterator[str]:
    """The paths of fields inside `value` that no alternative of a schema names, where one does not take any."""
    kinds = [each for whole in schema.get("anyOf", [schema]) for each in whole.get("anyOf", [whole])]
    if isinstance(value, list):
        items = [kind["items"] for kind in kinds if "items" in kind]
        for number, each in enumerate(value if items else ()):
            yield from _unknown_in(each, {"anyOf": items}, f"{path}[{number}]")
    elif isinstance(value, dict):
        meant = [kind for kind in kinds if kind.get("type") == "object" and _is_meant(value, kind)]
        if not meant or not all("properties" in kind for kind in meant):
            return
        for name, each in value.items():
            known = [kind["properties"][name] for kind in meant if name in kind["properties"]]
            if known:
                yield from _unknown_in(each, {"anyOf": known}, f"{path}.{name}")
            else:
                yield f"{path}.{name}"


def _is_meant(value: Mapping[str, Any], kind: Schema) -> bool:
    """Whether an object is of the alternative that its type names."""
    named = kind.get("properties", {}).get("type", {})
    return "const" not in named or named["const"] == value.get("type")

"""Options written as the fields of dataclasses: each stands once, however many commands take it."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer import Option


def command(run: Callable[..., None]) -> Callable[..., None]:
    """``run(options)`` as typer reads commands: with a parameter for each field of the dataclass that it takes.

    A field whose type is a dataclass stands for that one's fields, which help shows together under its ``PANEL``.
    Fields are annotated as typer's parameters are, or say in their metadata what they are for (`ServerSettings`).
    """
    (name, group), *others = get_type_hints(run, include_extras=True).items()
    assert [each for each, _ in others] in ([], ["return"]), "a command takes its options as one dataclass"

    @functools.wraps(run)
    def typed(**values: Any) -> None:
        run(**{name: _build(group, values)})

    parameters = [
        inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for field, default, annotation in _fields(group)
    ]
    del typed.__wrapped__  # type: ignore[attr-defined]  # or its signature would be the dataclass's
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return typed


def _fields(group: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, default and annotation of each field, those of groups within among them."""
    panel = getattr(group, "PANEL", None)
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        annotation = hints[field.name]
        if _is_group(annotation):
            yield from _fields(annotation)
        else:
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            if "limit" in field.metadata:
                annotation = _described(field, annotation)
            yield (
                field.name,
                default or None if _is_tuple(field) else default,
                (annotation if panel is None else _in_panel(annotation, panel)),
            )


def _described(field: dataclasses.Field, kind: Any) -> Any:
    """The option of a field that knows no typer, by what its metadata says of it."""
    told = field.metadata
    name = f"--{field.name.replace('_', '-')}"
    option = Option(name, help=told["limit"].about, metavar=told["metavar"], rich_help_panel=told["group"])
    return Annotated[list[str] | None if _is_tuple(field) else kind, option]


def _is_tuple(field: dataclasses.Field) -> bool:
    return isinstance(field.default, tuple)


def _in_panel(annotation: Any, panel: str) -> Any:
    """The same option, shown under `panel`."""
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = panel
    return Annotated[kind, option]


def _build(group: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(group, include_extras=True)
    return group(
        **{
            field.name: _build(hints[field.name], values)
            if _is_group(hints[field.name])
            else tuple(values[field.name] or ())
            if _is_tuple(field)
            else values[field.name]
            for field in dataclasses.fields(group)
        }
    )


def _is_group(annotation: Any) -> bool:
    return get_origin(annotation) is None and dataclasses.is_dataclass(annotation)

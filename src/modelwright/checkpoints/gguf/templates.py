"""The chat templates of a folder as a GGUF file's metadata: one is the default, others have names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.checkpoints.gguf.tokenizer import DEFAULT_TEMPLATE, TEMPLATE
from modelwright.checkpoints.source import read_json


def template_metadata(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a file for the templates in ``folder``, of which ``tokenizer_config.json`` holds ``settings``.

    As in transformers, files of their own come before the settings.
    """
    templates = {**_stated(settings.get("chat_template")), **_beside(folder)}
    named = {f"{TEMPLATE}.{name}": text for name, text in templates.items() if name != DEFAULT_TEMPLATE}
    listed = {f"{TEMPLATE}s": sorted(name.removeprefix(f"{TEMPLATE}.") for name in named)} if named else {}
    return named | listed | ({TEMPLATE: templates[DEFAULT_TEMPLATE]} if DEFAULT_TEMPLATE in templates else {})


def _stated(template: Any) -> dict[str, str]:
    """The templates in a value of ``chat_template``: a text, or a list of names and texts."""
    if isinstance(template, list):
        return {each["name"]: each["template"] for each in template}
    return {DEFAULT_TEMPLATE: template} if isinstance(template, str) else {}


def _beside(folder: Path) -> dict[str, str]:
    """The templates in files of their own; ``chat_template.json`` is what older processors have."""
    older, usual = folder / "chat_template.json", folder / "chat_template.jinja"
    found = {path.stem: path.read_text("utf-8") for path in folder.glob("additional_chat_templates/*.jinja")}
    if usual.is_file():
        return found | {DEFAULT_TEMPLATE: usual.read_text("utf-8")}
    return found | (_stated(read_json(older).get("chat_template")) if older.is_file() else {})

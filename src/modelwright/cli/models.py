"""``modelwright models``: the models that ship inside the package."""

import dataclasses
import json

from modelwright import zoo
from modelwright.cli.console import write
from modelwright.cli.tables import write_lines, write_table


def list_models(as_json: bool) -> None:
    """Print a table, or a JSON list of objects with the fields of ``zoo.ZooModel``."""
    shipped = [zoo.describe(name) for name in zoo.names()]
    if as_json:
        write(json.dumps([dataclasses.asdict(model) for model in shipped], indent=2) + "\n")
        return
    if not shipped:
        write_lines("no models ship in this build")
        return
    rows = [
        (model.name, model.family, f"{model.parameters / 1e6:.1f} M", f"{model.weight_bytes / 1e6:.1f} MB",
         _headline(model.accuracy)) for model in shipped
    ]  # fmt: skip
    write_table(rows, ("name", "family", "parameters", "size", "right on held-out pictures"), left=(0, 1, 4))


def _headline(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * share:.0f} %" for task, share in accuracy.items()) or "not measured"

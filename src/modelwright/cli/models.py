"""``modelwright models``: the models that ship inside the package."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from modelwright import zoo


def list_models(as_json: bool) -> None:
    """Print a table, or a JSON list of objects with the fields of ``zoo.ZooModel``."""
    shipped = [zoo.describe(name) for name in zoo.names()]
    if as_json:
        print(json.dumps([dataclasses.asdict(model) for model in shipped], indent=2))
        return
    table = Table("name", "family", "parameters", "size", "right on held-out pictures", box=None, pad_edge=False)
    for model in shipped:
        size, parameters = f"{model.weight_bytes / 1e6:.1f} MB", f"{model.parameters / 1e6:.1f} M"
        table.add_row(model.name, model.family, parameters, size, _headline(model.accuracy))
    Console(markup=False, highlight=False).print(table if shipped else "no models ship in this build")


def _headline(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * share:.0f} %" for task, share in accuracy.items()) or "not measured"

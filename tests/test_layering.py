"""The import table of the house: who may import whom, wherever an import stands; not whether it is a wise one."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "modelwright"
ROOMS = Path(__file__).parents[1] / "docs" / "rooms.md"

FAMILY_PARTS = {"config", "decoding", "plan", "processor", "prompts", "slicing", "export"}
"""The parts of a family that are rooms of their own, ``families.<part>``; the rest of it is ``families.model``."""

CONFIG = {"errors", "configs", "families"}
TENSORS = {"ops", "attention", "layers"}
BELOW_ENGINE = CONFIG | TENSORS | {"processing", "planner", "checkpoints", "hf", "parallel", "data"}
ANYTHING = BELOW_ENGINE | {"engine", "training", "export", "serving", "server", "deploy", "cli", "zoo", "durable"}

# What a room may import of ours, besides itself. ``families`` is the records, which name the parts of each family and
# import none of them; so a room that asks the records imports no family.
MAY_IMPORT = {
    "errors": set(),
    "durable": set(),
    "configs": {"errors"},
    "families": {"errors", "configs"},
    "families.config": CONFIG,
    "families.decoding": CONFIG | {"families.config"},
    "processing": {"errors", "configs"},
    "families.prompts": CONFIG | {"processing", "families.config"},
    "families.processor": CONFIG | {"processing", "families.config", "families.prompts"},
    "planner": CONFIG,
    "families.plan": CONFIG | {"planner", "families.config"},
    "ops": set(),
    "attention": {"ops"},
    "layers": {"ops", "attention"},
    "checkpoints": CONFIG | {"ops", "layers"},
    "hf": CONFIG | TENSORS | {"checkpoints"},
    "parallel": {"errors", "configs"} | TENSORS,
    "families.model": CONFIG | TENSORS | {"checkpoints", "hf", "families.config"},
    "families.slicing": CONFIG | TENSORS | {"parallel", "families.config", "families.model"},
    "data": {"errors", "durable", "configs", "processing"},
    "engine": BELOW_ENGINE,
    "training": BELOW_ENGINE | {"durable", "zoo"},
    "export": CONFIG | TENSORS | {"checkpoints", "hf"},
    "families.export": CONFIG | TENSORS | {"checkpoints", "hf", "export", "families.config", "families.model"},
    "serving": BELOW_ENGINE | {"engine", "zoo"},
    "server": {"errors", "configs", "processing", "engine", "serving"},
    "deploy": {"errors", "configs", "serving", "server"},
    "cli": ANYTHING,
    "zoo": {"errors"},
}
# Outside packages a room does without: no tensor code in configs and planner, no model library in the tensor rooms.
MUST_NOT_IMPORT = {
    "configs": {"torch"},
    "families": {"torch", "transformers"},
    "families.config": {"torch"},
    "families.decoding": {"torch", "transformers"},
    "families.model": {"transformers"},
    "planner": {"torch", "transformers"},
    "families.plan": {"torch", "transformers"},
    "ops": {"transformers"},
    "attention": {"transformers"},
    "layers": {"transformers"},
    "engine": {"transformers"},
}
# Rooms that see only a part of another room: layers know the attention protocol and no backend.
ONLY_PART = {("layers", "attention"): ("modelwright.attention.protocol", "modelwright.attention.AttentionBackend")}


def module_name(path: Path, package: Path) -> str:
    """The dotted name of a file, a package's own for its ``__init__``."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Each import as (line, dotted name), late ones and importlib's literals too; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, _leading_text(node.args[0])


def _leading_text(node: ast.expr) -> str:
    """The literal a name starts with: all of a string, the first piece of an f-string or of a sum, else nothing."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return _leading_text(node.values[0])
    if isinstance(node, ast.BinOp):
        return _leading_text(node.left)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def room_of(name: str) -> str:
    """The room of a module or of a name in it: ``families.<part>`` inside a family, else the first part of the name."""
    _, room, *rest = [*name.split("."), ""]
    if room != "families" or not (PACKAGE / "families" / rest[0]).is_dir() or not rest[0]:
        return room
    part = rest[1] if len(rest) > 1 and rest[1] else ""
    return f"families.{part}" if part in FAMILY_PARTS else "families.model" if part else "families"


def _broken_rule(room: str, target: str) -> str | None:
    """The rule that ``room`` breaks by importing ``target``, or None."""
    top, *rest = target.split(".")
    if top != "modelwright":
        return f"{room} does without {top}" if top in MUST_NOT_IMPORT.get(room, ()) else None
    if not rest or rest[0] not in MAY_IMPORT:
        return None if MAY_IMPORT[room] is ANYTHING else f"{room} imports {target}, which names no room"
    theirs = room_of(target)
    if theirs != room and theirs not in MAY_IMPORT[room]:
        return f"{room} may import {', '.join(sorted(MAY_IMPORT[room])) or 'nothing of ours'}, not {theirs}"
    parts = ONLY_PART.get((room, theirs), (f"modelwright.{rest[0]}",))
    if not any(f"{target}.".startswith(f"{part}.") for part in parts):
        return f"{room} may import {' or '.join(parts)} only, not {target}"
    return None


def violations(package: Path) -> list[str]:
    """Every break of the table under ``package``, as ``file:line: what``; empty when the house is in order."""
    found = []
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        where, name = path.relative_to(package.parent), module_name(path, package)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        if path.stem == "utils":
            found.append(f"{where}:1: no module is named utils")
        if "TYPE_CHECKING" in {getattr(n, "id", getattr(n, "attr", getattr(n, "name", ""))) for n in ast.walk(tree)}:
            found.append(f"{where}:1: no import hides under TYPE_CHECKING")
        if name in (package.name, f"{package.name}.__main__"):
            continue  # the front door names any room
        room = room_of(name)
        if room not in MAY_IMPORT:
            found.append(f"{where}:1: {room} is no room of the house")
            continue
        parent = name if path.stem == "__init__" else name.rpartition(".")[0]
        broken = ((line, _broken_rule(room, target)) for line, target in imports_of(tree, parent))
        found.extend(f"{where}:{line}: {rule}" for line, rule in broken if rule)
    return found


def documented_table() -> dict[str, tuple[int, set[str]]]:
    """Each room of docs/rooms.md with its floor and what it may import."""
    rows = [line.strip("| ").split(" | ") for line in ROOMS.read_text(encoding="utf-8").splitlines() if "| `" in line]
    table = {}
    for floor, room, _, named in rows:
        named = named.replace("and of `attention` the protocol", "attention").replace("nothing", "")
        table[room.strip("`")] = int(floor), set(named.split(", ")) - {""}
    return table


def module_graph(package: Path) -> dict[str, set[str]]:
    """Each module of ``package`` with those it imports, wherever an import stands.

    Left out are what an import implies (the packages around a module) and names that are made while running.
    """
    files = {module_name(path, package): path for path in package.rglob("*.py")}
    graph = {}
    for name, path in files.items():
        parent = name if path.stem == "__init__" else name.rpartition(".")[0]
        targets = (target for _, target in imports_of(ast.parse(path.read_text(encoding="utf-8")), parent))
        found = (target if target in files else target.rpartition(".")[0] for target in targets if target[-1:] != ".")
        graph[name] = {target for target in found if target in files and target != name}
    return graph


def test_the_house_keeps_its_table():
    assert violations(PACKAGE) == []


def test_the_documented_table_is_this_one():
    """And a room stands above all that it imports."""
    documented = documented_table()
    assert {room: named for room, (_, named) in documented.items()} == {r: MAY_IMPORT[r] - {r} for r in MAY_IMPORT}
    for room, (floor, named) in documented.items():
        assert all(documented[other][0] < floor for other in named), room


def test_no_modules_import_each_other():
    """References of a record are strings that are resolved on first use, and no imports: they are where cycles end."""
    graph = module_graph(PACKAGE)
    assert len(graph) > 200 and any(graph.values())
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_cycle_of_modules_is_found(tmp_path):
    write(tmp_path, "hf/a.py", "def f():\n    from . import b")
    write(tmp_path, "hf/b.py", "from modelwright.layers.norm import RMSNorm")
    package = write(tmp_path, "layers/norm.py", "import modelwright.hf.a")
    with pytest.raises(CycleError) as caught:
        tuple(TopologicalSorter(module_graph(package)).static_order())
    assert set(caught.value.args[1]) == {"modelwright.hf.a", "modelwright.hf.b", "modelwright.layers.norm"}


def test_the_table_has_no_cycle():
    """Each floor needs only floors below it; cli stands on top."""
    left, settled = {room: set(below) for room, below in MAY_IMPORT.items() if room != "cli"}, set()
    while left:
        floor = {room for room, below in left.items() if below <= settled}
        assert floor, f"rooms importing each other: {sorted(left)}"
        settled |= floor
        left = {room: below for room, below in left.items() if room not in floor}


def write(tmp_path: Path, file: str, source: str) -> Path:
    path = tmp_path / "modelwright" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return tmp_path / "modelwright"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("families/deepseek_v2/model.py", "from modelwright.layers.norm import RMSNorm\nimport modelwright.ops.rotary"),
        ("layers/norm.py", "import torch\nfrom modelwright.attention.protocol import AttentionBackend"),
        ("layers/attention.py", "from modelwright.attention import AttentionBackend"),
        ("layers/moe.py", "from modelwright.attention import protocol\nfrom .norm import RMSNorm\nfrom . import mlp"),
        ("families/llama/parts.py", "from modelwright.errors import ConfigError"),
        ("configs/base.py", "from transformers import PreTrainedConfig"),
        ("cli/main.py", "def main():\n    from modelwright.cli.chat import chat\n    from modelwright import zoo"),
        ("cli/chat.py", "import modelwright\nfrom modelwright import __version__, load"),
        ("__init__.py", "from importlib import import_module\nimport_module('modelwright.hf')"),
        ("__main__.py", "from modelwright.cli.main import main"),
    ],
)
def test_a_permitted_import_is_not_reported(tmp_path, file, source):
    assert violations(write(tmp_path, file, source)) == []


@pytest.mark.parametrize(
    ("file", "source", "report"),
    [
        ("ops/a.py", "import modelwright.layers", "ops/a.py:1: ops may import nothing of ours, not layers"),
        ("ops/a.py", "\nfrom modelwright import errors", "ops/a.py:2: ops may import nothing of ours, not errors"),
        (
            "layers/a.py",
            "from ..parallel import tensor",
            "layers/a.py:1: layers may import attention, ops, not parallel",
        ),
        ("layers/__init__.py", "from ..configs import x", "not configs"),
        ("layers/sub/a.py", "from ...hf import x", "not hf"),
        (
            "layers/a.py",
            "from modelwright.attention.dense import D",
            "AttentionBackend only, not modelwright.attention.dense.D",
        ),
        (
            "layers/a.py",
            "from modelwright.attention import DenseAttention",
            "AttentionBackend only, not modelwright.attention.DenseAttention",
        ),
        (
            "layers/a.py",
            "import modelwright.attention.protocols",
            "AttentionBackend only, not modelwright.attention.protocols",
        ),
        ("layers/a.py", "import modelwright.attention", "AttentionBackend only, not modelwright.attention"),
        ("layers/a.py", "def f():\n    from modelwright.hf import x", "layers/a.py:2: layers may import"),
        ("hf/a.py", "importlib.import_module('modelwright.cli')", "hf/a.py:1: hf may import"),
        ("hf/a.py", "import_module(f'modelwright.engine.{name}')", "not engine"),
        ("hf/a.py", "import_module('modelwright.parallel.' + name)", "not parallel"),
        ("hf/a.py", "__import__('modelwright.planner')", "not planner"),
        ("hf/a.py", "from modelwright.parallel import mesh", "not parallel"),
        ("parallel/a.py", "from modelwright.families.llama import parts", "not families.model"),
        ("engine/a.py", "from modelwright.training import x", "not training"),
        ("families/a.py", "import modelwright.families.llama.config", "not families.config"),
        ("families/llama/decoding.py", "import torch", "families.decoding does without torch"),
        ("families/llama/model.py", "import modelwright.families.llama.slicing", "not families.slicing"),
        ("families/llama/plan.py", "import modelwright.families.llama.decoding", "not families.decoding"),
        ("families/llama/config/a.py", "import torch", "families.config does without torch"),
        ("families/llama/plan.py", "from modelwright.families.llama.parts import x", "not families.model"),
        ("planner/a.py", "from modelwright.families.llama.plan import x", "not families.plan"),
        ("export/a.py", "from modelwright.families.llama.model import x", "not families.model"),
        ("engine/a.py", "from modelwright.families.llama.config import x", "not families.config"),
        ("server/a.py", "from modelwright.hf import x", "not hf"),
        ("configs/a.py", "import torch.nn", "configs does without torch"),
        ("planner/a.py", "def f():\n    from torch import nn", "planner/a.py:2: planner does without torch"),
        ("attention/a.py", "from transformers.cache_utils import Cache", "attention does without transformers"),
        ("families/llama/a.py", "from transformers import Cache", "families.model does without transformers"),
        ("hf/a.py", "import modelwright", "hf imports modelwright, which names no room"),
        ("hf/a.py", "from modelwright import load", "hf imports modelwright.load, which names no room"),
        ("hf/a.py", "from typing import TYPE_CHECKING", "hf/a.py:1: no import hides under TYPE_CHECKING"),
        ("hf/a.py", "import typing\nif typing.TYPE_CHECKING:\n    pass", "no import hides under TYPE_CHECKING"),
        ("__init__.py", "from typing import TYPE_CHECKING", "no import hides under TYPE_CHECKING"),
        ("hf/utils.py", "", "hf/utils.py:1: no module is named utils"),
        ("helpers/a.py", "", "helpers/a.py:1: helpers is no room of the house"),
        ("loose.py", "", "loose.py:1: loose is no room of the house"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, source, report):
    [found] = violations(write(tmp_path, file, source))
    assert report in found

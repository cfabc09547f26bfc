"""What pyproject.toml and constraints.txt say of other packages: imports are declared, installations are pinned."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts] for name, texts in PROJECT["project"]["optional-dependencies"].items()
}
BUILD = [Requirement(text) for text in PROJECT["dependency-groups"]["build"]]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""The name of a package's module, where it is not the package's own."""
WHERE_INSTALLED = {"opentelemetry", "datasets", "zstandard", "compression"}
"""Used where they are installed: by whoever collects traces, reads the Hub's data sets, or packs files by zstd, which
Python unpacks itself from 3.14 on."""
BESIDE = {"dev", "eval", "track"}
"""Extras that the tests do without, and the one they are run with."""
OWN = {"modelwright", "tests", "recipes", "benchmarks", "examples"}
SYSTEMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
MACHINES = [
    {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": system, "platform_machine": kind}
    for python in ("3.11", "3.12", "3.13")
    for system, kind in SYSTEMS
]


def imported_packages(folder: str) -> dict[str, set[str]]:
    """The third-party packages that ``folder``'s files import, late ones included, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in OWN and name not in sys.stdlib_module_names:
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            yield from (name.value.partition(".")[0] for name in node.args[:1] if isinstance(name, ast.Constant))


def modules(requirements: list[Requirement]) -> set[str]:
    """The names under which ``requirements`` are imported."""
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def pin_of(name: str, machine: dict[str, str]) -> Requirement | None:
    """The one pin of a package on ``machine``, or None."""
    named = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]
    [pin] = [pin for pin in named if pin.marker is None or pin.marker.evaluate(machine)] or [None]
    return pin


def version_of(pin: Requirement) -> str:
    [specifier] = pin.specifier
    return specifier.version


def test_the_package_imports_nothing_that_is_not_declared():
    optional = [requirement for requirements in EXTRAS.values() for requirement in requirements]
    undeclared = imported_packages("src").keys() - modules(CORE) - modules(optional)
    assert undeclared <= WHERE_INSTALLED


def test_what_is_imported_with_the_package_is_a_core_dependency():
    """The others come with an extra, or with torch for GPUs."""
    extras = [requirement for name, extra in EXTRAS.items() if name != "dev" for requirement in extra]
    others = modules(extras) - modules(CORE) | {"triton"} | WHERE_INSTALLED
    assert imported_packages("src").keys() - others == modules(CORE)


def test_the_tests_import_nothing_that_the_dev_extra_lacks():
    """Judges are run by hand, in an environment of what they judge by."""
    judges = {name for name, files in imported_packages("tests").items() if all("judges" in file for file in files)}
    assert imported_packages("tests").keys() - modules(CORE + EXTRAS["dev"]) - judges == set()


def test_the_dev_extra_holds_all_others():
    """But programs beside a run, for which tests put fakes, and which judges install in an environment of their own."""
    others = [requirement for name, extra in EXTRAS.items() if name not in BESIDE for requirement in extra]
    assert {str(requirement) for requirement in others} <= {str(requirement) for requirement in EXTRAS["dev"]}


def test_a_pin_is_one_version_and_says_nothing_of_where_it_comes_from():
    for pin in PINS:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin  # one version, and of no local build
        assert pin.url is None and not pin.extras


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: " ".join(list(machine.values())[1:]))
def test_each_dependency_is_pinned_once_within_its_range(machine):
    for requirement in CORE + EXTRAS["dev"] + BUILD:
        if requirement.marker is None or requirement.marker.evaluate(machine):
            pin = pin_of(requirement.name, machine)
            assert pin is not None and requirement.specifier.contains(version_of(pin)), requirement


def test_what_pinned_packages_ask_for_is_pinned():
    """Down to the last package, as far as the versions that are installed here are the pinned ones."""
    here: dict[str, str] = {}  # of the interpreter that runs
    left, seen = [(requirement, "") for requirement in CORE + EXTRAS["dev"] + BUILD], set()
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(here | {"extra": extra}):
            continue
        pin = pin_of(requirement.name, here)
        assert pin is not None, f"{requirement.name} is not pinned: run make lock"
        for wanted in ("", *requirement.extras):
            if (pin.name, wanted) in seen or not _is_installed(pin):
                continue
            seen.add((pin.name, wanted))
            left += [(Requirement(text), wanted) for text in metadata.requires(pin.name) or []]


def _is_installed(pin: Requirement) -> bool:
    """Whether this environment has the pinned version; a local build of it, such as torch's for CPUs, counts."""
    try:
        return pin.specifier.contains(metadata.version(pin.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False

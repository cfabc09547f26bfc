"""The front door: what ``import modelwright`` offers and leaves unimported; the rooms have tests of their own."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from importlib.metadata import version
from pathlib import Path

import pytest

import modelwright

HEAVY = ("torch", "transformers", "numpy", "PIL", "typer")


def loaded_after(code: str) -> list[str]:
    """The heavy packages imported in a fresh interpreter that ran ``code``."""
    report = f"import sys; {code}; print(*[name for name in {HEAVY} if name in sys.modules])"
    paths = f"import sys; sys.path[:0] = {sys.path!r}; "
    return subprocess.run(
        [sys.executable, "-c", paths + report], check=True, capture_output=True, text=True
    ).stdout.split()


@pytest.mark.parametrize(
    "code",
    ["import modelwright", "import modelwright; dir(modelwright)", "from modelwright import ConfigError, __version__"],
)
def test_importing_the_package_imports_nothing_heavy(code):
    assert loaded_after(code) == []


def test_the_version_is_the_installed_one():
    assert modelwright.__version__.count(".") == 2
    assert version("modelwright") == modelwright.__version__


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names():
    listed = "'modelwright' has no attribute 'Deepseek'; it has AsyncEngine, CheckpointError, Con"
    with pytest.raises(AttributeError, match=listed):
        _ = modelwright.Deepseek  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(modelwright, "Deepseek")


def test_every_public_name_is_listed_resolves_and_stays():
    for name in modelwright.__all__:
        assert name in dir(modelwright)
        assert getattr(modelwright, name) is getattr(modelwright, name)
        assert name in vars(modelwright)


def test_functions_are_those_of_their_rooms_and_not_imported_before_they_are_used():
    from modelwright.checkpoints.quantized_model import quantize_model

    assert modelwright.quantize_model is quantize_model
    assert loaded_after("import modelwright; 'quantize_model' in dir(modelwright)") == []
    assert "torch" in loaded_after("from modelwright import quantize_model")


def test_the_errors_are_value_errors():
    for name in ("ConfigError", "CheckpointError", "RequestError"):
        assert issubclass(getattr(modelwright, name), ValueError)


def test_type_checkers_are_told_the_same_names():
    stub = modelwright.__file__ + "i"
    with open(stub, encoding="utf-8") as file:
        statements = ast.parse(file.read()).body
    imported = {alias.asname for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(modelwright.__all__)


def test_using_a_model_class_registers_the_family_with_transformers():
    from transformers import AutoConfig

    assert modelwright.DeepseekVLV2ForCausalLM.__module__.startswith("modelwright.families.")
    config = AutoConfig.for_model("deepseek_vl_v2")
    assert type(config) is modelwright.DeepseekVLV2Config


def test_a_package_index_gets_a_readme_without_links_into_the_source(monkeypatch):
    folder = Path(__file__).parents[1]
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in ("DeepSeek-V2", "DeepSeek-VL2", "Llama", "Mistral", "Qwen2", "ImageGPT"):
        assert name in project["description"]
    builder = types.ModuleType("hatchling.metadata.plugin.interface")  # which only builds have
    builder.MetadataHookInterface = object  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, builder.__name__, builder)
    spec = importlib.util.spec_from_file_location("hatch_build", folder / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    shown = hatch_build.as_description((folder / "README.md").read_text(encoding="utf-8"))
    assert re.findall(r"\]\((?!https?:)[^)]*\)", shown) == []
    assert "`docs/engine.md` says how it works" in shown and "Apache-2.0 (`LICENSE`)" in shown
    assert hatch_build.as_description("a\n\n![p](docs/p.png)\n\nb [c](https://d.e) [f](#g)") == (
        "a\n\nb [c](https://d.e) [f](#g)"
    )


def test_a_source_archive_holds_what_its_documents_name():
    folder = Path(__file__).parents[1]
    included = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert {"/README.md", "/CONTRIBUTING.md", "/CHANGELOG.md", "/docs"} <= set(included["targets"]["sdist"]["include"])
    listed = re.findall(r"^- \[([^]]+)\]", (folder / "docs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted({path.name for path in (folder / "docs").glob("*.md")} - {"README.md"})

"""The exports that several test files look at, each made once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelwright.export import Report, export_onnx
from tests.export.graphs import open_graph, tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama


@dataclass(frozen=True)
class Exported:
    """A model, the folder it was exported to, and the export's report."""

    model: Any
    folder: Path
    report: Report

    def open(self) -> Any:
        """Its decoder in onnxruntime."""
        return open_graph(self.folder)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(model, ...)``: exported to a folder with a name that is neither ASCII nor without spaces."""

    def make(model: Any, **how: Any) -> Exported:
        folder = tmp_path_factory.mktemp("export") / "späte Bilder 像素"
        return Exported(model, folder, export_onnx(model, folder, **how))

    return make


@pytest.fixture(scope="session")
def llama(exported):
    """A Llama as Hugging Face writes them: grouped heads, rotation of Llama 3, biases, tied head; weights outside."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16}
    model = tiny_llama(base=HUGGING_FACE, rope_scaling=rope, attention_bias=True, tie_word_embeddings=True)
    return exported(model, external_above=1000)


@pytest.fixture(scope="session")
def imagegpt(exported):
    return exported(tiny_imagegpt())

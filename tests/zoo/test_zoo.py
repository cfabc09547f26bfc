"""What the zoo says of the models it holds, on a zoo of the tests' own; the real models are tested beside."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelwright import zoo
from modelwright.errors import CheckpointError, RequestError


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A zoo that holds one model of 12 + 5 parameters."""
    folder = tmp_path / "sparrow"
    folder.mkdir()
    (tmp_path / "no-model").mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v2"}))
    (folder / "accuracy.json").write_text(json.dumps({"seed": 3, "accuracy": {"colour": 0.975, "count": 0.9}}))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, folder / "model.safetensors")
    monkeypatch.setattr(zoo, "_ROOT", tmp_path)
    return folder


def test_a_model_is_a_folder_with_a_config(model):
    assert zoo.names() == ["sparrow"]
    assert zoo.path("sparrow") == model


def test_an_unknown_name_is_refused_with_the_names_there_are(model):
    with pytest.raises(RequestError, match=r"the zoo has no model 'owl'; it has sparrow"):
        zoo.path("owl")


@pytest.mark.parametrize("name", ["", ".", "..", "../sparrow", "no-model"])
def test_only_names_are_taken_not_paths(model, name):
    with pytest.raises(RequestError, match="the zoo has no model"):
        zoo.path(name)


def test_a_description_counts_parameters_from_the_headers(model):
    bird = zoo.describe("sparrow")
    assert (bird.name, bird.family, bird.parameters) == ("sparrow", "deepseek_v2", 17)
    assert bird.weight_bytes == (model / "model.safetensors").stat().st_size
    assert bird.accuracy == {"colour": 0.975, "count": 0.9}


def test_a_model_that_was_not_measured_has_no_accuracy(model):
    (model / "accuracy.json").unlink()
    assert zoo.describe("sparrow").accuracy == {}


@pytest.mark.parametrize("name", ["config.json", "accuracy.json", "model.safetensors"])
def test_damaged_files_are_named(model, name):
    (model / name).write_text("{")
    with pytest.raises(CheckpointError, match=r"the files of sparrow in .* are damaged: \w+Error"):
        zoo.describe("sparrow")

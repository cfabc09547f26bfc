"""A MindFormers folder where a folder to run is asked for: every road but first weights says how to convert it."""

import json
import shutil

import pytest
import torch

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.serving.load import load
from modelwright.serving.opened import find_model
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

ROADS = {
    "load": load,
    "from_pretrained": LlamaForCausalLM.from_pretrained,
    "chat, generate, bench": lambda folder: find_model(str(folder)),
    "quantize": lambda folder: quantize(folder, folder.parent / "out", "int8"),
    "checkpoint_name_or_path": lambda folder: LlamaForCausalLM.from_config(
        LlamaConfig(**MINDFORMERS, checkpoint_name_or_path=str(folder if folder.is_dir() else folder.parent))
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny_llama().save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "their s", to="mindformers")
    return folder / "their s"


@pytest.mark.parametrize("kind", ["yaml", "their json", "our config.json", "the yaml itself"])
@pytest.mark.parametrize("road", [road for road in ROADS if road != "checkpoint_name_or_path"])
def test_the_line_to_type_is_given(made, tmp_path, road, kind):
    folder = shutil.copytree(made, tmp_path / "their s")
    values = {"their json": {key: MINDFORMERS[key] for key in MINDFORMERS if key != "dialect"}}
    values["our config.json"] = HUGGING_FACE | {"model_type": "llama"}
    if kind in values:
        (folder / "mindformers.yaml").unlink()
        (folder / "config.json").write_text(json.dumps(values[kind]))
    named = folder / "mindformers.yaml" if kind == "the yaml itself" else folder
    with pytest.raises(CheckpointError) as caught:
        ROADS[road](named)
    line = f"modelwright convert '{folder}' NEW_FOLDER"
    assert str(caught.value) == f"{folder} is a MindFormers checkpoint, which runs once it is converted: {line}"


def test_a_config_may_name_them_as_first_weights(made):
    """As MindFormers' runs do, whose own names these are: the run says of what model, and nothing need be converted."""
    found = ROADS["checkpoint_name_or_path"](made).state_dict()
    for name, tensor in tiny_llama().state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_the_line_works(made, tmp_path):
    convert(made, tmp_path / "NEW_FOLDER")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "NEW_FOLDER").config.num_hidden_layers == 2


def test_weights_that_only_mindspore_reads_say_so(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {}")
    (tmp_path / "llama.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds \.ckpt weights, which only MindSpore reads"):
        find_checkpoint(tmp_path)


PARTS = r"holds the parts of 3 ranks \(rank_0 to rank_10\) and no whole checkpoint: merge them where they were saved"


@pytest.mark.parametrize("read", [find_checkpoint, lambda path: convert(path, path / "NEW"), *ROADS.values()])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_the_parts_of_ranks_are_to_be_merged_first(read, suffix, tmp_path):
    for rank in (0, 2, 10):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / f"llama_rank_{rank}-8_2.{suffix}").write_bytes(b"")
    (tmp_path / "run.yaml").write_text("model: {}")
    with pytest.raises(CheckpointError, match=PARTS):
        read(tmp_path)


def test_a_single_ranks_folder_is_to_be_named(tmp_path):
    (tmp_path / "rank_0").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights, and its folder rank_0 may: name that one"):
        find_checkpoint(tmp_path)

"""save_pretrained of a model of which layers lie on disk or in host memory, where accelerate's hooks keep them."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

from modelwright.errors import CheckpointError
from modelwright.families.llama.model import LlamaForCausalLM
from tests.fakes import NOAUX, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

DECODER = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
LANGUAGE = {f"language.{name}": place for name, place in (DECODER | {"lm_head": "disk"}).items()}
PICTURES = {"vision": "disk", "projector": "disk", "image_newline": "cpu", "view_seperator": "cpu"}
MODELS = {
    "llama": (lambda: tiny_llama(base=HUGGING_FACE), DECODER | {"lm_head": "disk"}),
    "llama, tied": (lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True), DECODER | {"lm_head": "cpu"}),
    "deepseek_v2": (lambda: tiny_v2(base=NOAUX), DECODER | {"lm_head": "disk"}),
    "deepseek_vl2": (tiny_vl2, LANGUAGE | PICTURES),
    "imagegpt": (tiny_imagegpt, {"transformer": "disk", "lm_head": "cpu"}),
}


def weights_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # parameters
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_what_lies_on_disk_is_written(kind, size, tmp_path):
    make, places = MODELS[kind]
    model = make()
    model.save_pretrained(tmp_path / "whole")
    where = {"device_map": places, "offload_folder": tmp_path / "disk", "offload_buffers": True}
    loaded = type(model).from_pretrained(tmp_path / "whole", **where)
    assert any(tensor.is_meta for tensor in loaded.state_dict().values())
    loaded.save_pretrained(tmp_path / "again", max_shard_size=size)
    found, wanted = weights_of(tmp_path / "again"), weights_of(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_transformers_writes_the_same_of_its_own_model(tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path / "whole")
    where = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "disk"}
    for cls in (LlamaForCausalLM, transformers.LlamaForCausalLM):
        where |= {"model.rotary_emb": "cpu"} if cls.__module__.startswith("transformers") else {}
        model = cls.from_pretrained(tmp_path / "whole", device_map=where, offload_folder=tmp_path / "disk")
        model.save_pretrained(tmp_path / cls.__module__)
    ours, theirs = (weights_of(tmp_path / cls.__module__) for cls in (LlamaForCausalLM, transformers.LlamaForCausalLM))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_that_has_no_numbers_anywhere_says_so(tmp_path):
    with torch.device("meta"):
        model = tiny_v2()
    with pytest.raises(CheckpointError, match="gate_up_proj is on the meta device and has no numbers"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()

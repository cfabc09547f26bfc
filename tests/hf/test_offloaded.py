"""Models of which a device map leaves parts on disk: the logits and the drawn tokens are those of the whole model."""

import accelerate
import pytest
import torch
from packaging.version import Version

from modelwright import Engine
from modelwright.errors import ConfigError
from tests.fakes import NOAUX, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, tied": lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True),
    "mindformers, fused, experts": lambda: tiny_llama(moe_config=EXPERTS, qkv_concat=True),
    "deepseek_v2": lambda: tiny_v2(base=NOAUX),
    "imagegpt": tiny_imagegpt,
    "deepseek_vl2": tiny_vl2,
}
APART = {"image_newline": "cpu", "view_seperator": "cpu"}
WHOLE = {"device_map": {"": "disk"}}
TOWER = {"device_map": {"vision": "disk", "projector": "cpu", "language": "cpu", **APART}}
BOTH = {
    "device_map": {"vision": "disk", "projector": "disk", "language.model": "disk", "language.lm_head": "cpu", **APART}
}
ROOM = {"device_map": "auto", "max_memory": {"cpu": "60KB"}}
MORE = {"device_map": "auto", "max_memory": {"cpu": "120KB"}}
SMALL = ("llama", "llama, tied", "imagegpt")
"""Models of which ``ROOM`` holds a part; of the others ``MORE`` does."""


def load(model, how, folder):
    """The model with parts on disk; None after accelerate has refused to put the whole on disk, as before 1.15."""
    model.save_pretrained(folder / "model")
    given = {"offload_folder": folder / "off", **how}
    if how is WHOLE and Version(accelerate.__version__) < Version("1.15"):
        with pytest.raises(ValueError, match="trying to offload the whole model to the disk"):
            type(model).from_pretrained(folder / "model", **given)
        return None
    return type(model).from_pretrained(folder / "model", **given)


def inputs_of(name):
    if name == "deepseek_vl2":
        return vl2_inputs([[(1, 1)], [(2, 1)]])
    ids = tokens(2, 7, vocab=16)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.one_in(4)
@pytest.mark.filterwarnings("ignore::UserWarning")  # accelerate's, on what a map does not name
@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in MODELS for how in (WHOLE, ROOM if name in SMALL else MORE)]
    + [("deepseek_vl2", TOWER), ("deepseek_vl2", BOTH)],
    ids=str,
)
def test_it_computes_what_the_whole_model_does(name, how, tmp_path):
    model, inputs = MODELS[name](), inputs_of(name)
    if (loaded := load(model, how, tmp_path)) is None:
        return
    assert {str(place) for place in loaded.hf_device_map.values()} == ({"disk"} if how is WHOLE else {"cpu", "disk"})
    assert any(parameter.is_meta for parameter in loaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    plan = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(loaded.generate(**inputs, **plan), model.generate(**inputs, **plan))


@pytest.mark.parametrize(
    ("how", "message"),
    [(WHOLE, "the engine needs weights in memory, and this model's lie on disk"), (ROOM, "got cpu, meta")],
)
def test_the_engine_refuses_it(how, message, tmp_path):
    if (loaded := load(tiny_llama(base=HUGGING_FACE), how, tmp_path)) is None:
        return
    with pytest.raises(ConfigError, match=message):
        Engine(loaded)

"""A checkpoint quantized on disk against the model quantized in memory, what is reported, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.quantize import quantize
from modelwright.checkpoints.quantized_model import METHODS, quantize_model
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.read import read_config
from modelwright.planner.plan import plan
from tests.fakes import MHA, MOE, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama

V2 = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "q_lora_rank": None, "v_head_dim": 16}
LLAMA = {"hidden_size": 64, "intermediate_size": 128}
MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE, **LLAMA),
    "deepseek_vl2": lambda: tiny_vl2(language=MOE | V2, projector_config={"n_embed": 64, "input_dim": 16}),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_folder_holds_what_quantizing_in_memory_gives(tmp_path, name, method):
    plain = MODELS[name]()
    plain.save_pretrained(tmp_path / "plain", max_shard_size="40KB")
    (tmp_path / "plain" / "notes.md").write_text("kept")
    how = {"group": 64, "symmetric": name == "llama"} if method == "int4" else {}
    report = quantize(tmp_path / "plain", tmp_path / "made", method, **how, max_shard_size="30KB")
    made = type(plain).from_pretrained(tmp_path / "made").state_dict()
    wanted = quantize_model(plain, method, **how).state_dict()
    assert made.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert made[key].dtype == tensor.dtype and torch.equal(made[key], tensor), key
    files = sorted((tmp_path / "made").glob("*.safetensors"))
    assert report.shards == len(files) > 1 and (tmp_path / "made" / "notes.md").read_text() == "kept"
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert report.bytes == index["metadata"]["total_size"] < report.source_bytes
    assert report.tensors == len(index["weight_map"])


def test_the_errors_are_those_of_the_steps(tmp_path):
    MODELS["llama"]().save_pretrained(tmp_path / "plain")
    errors = {m: quantize(tmp_path / "plain", tmp_path / m, m).errors for m in ("int8", "int4")}
    assert len(errors["int8"]) == 2 * 7 and errors["int8"].keys() == errors["int4"].keys()
    # Rounding adds step / sqrt(12) to normal weights. The largest of 64 is about 2.4 deviations, a step 2.4 / 127 of
    # one; the range of 32 is about 4.1 deviations, a step 4.1 / 15; give or take a third for the spread of the largest.
    for method, step in (("int8", 2.4 / 127), ("int4", 4.1 / 15)):
        wanted = step / 12**0.5
        assert all(wanted / 1.33 < error < wanted * 1.33 for error in errors[method].values()), errors[method]


def test_what_is_not_rounded_keeps_its_type(tmp_path):
    model = tiny_v2(**V2).half()
    model.save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text()) | {"dtype": "float32"}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    quantize(tmp_path / "plain", tmp_path / "made", "int8")
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as file:
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "F16"
    loaded = type(model).from_pretrained(tmp_path / "made")
    assert loaded.dtype == torch.float32


def test_what_cannot_be_done_leaves_no_folder(tmp_path):
    MODELS["llama"]().save_pretrained(tmp_path / "plain")
    quantize(tmp_path / "plain", tmp_path / "made", "int8")
    with pytest.raises(
        CheckpointError, match=r"is quantized already \(.* is I8\); quantize the checkpoint it was made"
    ):
        quantize(tmp_path / "made", tmp_path / "again", "int4")
    with pytest.raises(ConfigError, match=r"\(64\) must be divisible by group_size \(128\)"):
        quantize(tmp_path / "plain", tmp_path / "again", "int4", group=128)
    with pytest.raises(CheckpointError, match="is quantized; convert the checkpoint it was made from"):
        convert(tmp_path / "made", tmp_path / "again")
    with pytest.raises(CheckpointError, match="is not empty; name a new folder"):
        quantize(tmp_path / "plain", tmp_path / "made", "int8")
    assert not (tmp_path / "again").exists()


# Against the planner

WIDE = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64}
PLANNED = {
    "v2, latent": lambda: tiny_v2(**WIDE | {"v_head_dim": 16, "q_lora_rank": 64}).bfloat16(),
    "v2, grouped": lambda: tiny_v2(base=MHA, **WIDE).bfloat16(),
    "v2, ungated": lambda: tiny_v2(**WIDE | {"v_head_dim": 16, "q_lora_rank": None, "gated_mlp": False}).half(),
    "vl2": lambda: MODELS["deepseek_vl2"]().bfloat16(),
    "llama": lambda: MODELS["llama"]().bfloat16(),
    "llama, tied": lambda: tiny_llama(base=HUGGING_FACE | {"tie_word_embeddings": True}, **LLAMA).bfloat16(),
    "llama, experts": lambda: tiny_llama(
        base=MINDFORMERS | {"moe_config": EXPERTS | {"shared_expert_num": 2}}, **LLAMA
    ),
    "llama, fused": lambda: tiny_llama(
        base=MINDFORMERS | {"qkv_concat": True, "qkv_has_bias": True, "attn_proj_has_bias": True}, **LLAMA
    ),
    "imagegpt": lambda: tiny_imagegpt(n_embd=64, n_inner=128, n_head=2).bfloat16(),
}
"""Each width is a whole number of groups of 64."""


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    ("name", "quant", "how", "keep_head"),
    [
        (name, *how)
        for name in PLANNED
        for how in (
            ("int8", {}, True),
            ("int8", {}, False),
            ("int4", {}, True),
            ("int4", {"group": 64, "symmetric": True}, False),
        )
        if how[-1] or name != "llama, tied"  # whose head is the embedding, and kept
    ],
)
def test_a_plan_has_the_bytes_that_the_folder_holds(tmp_path, name, quant, how, keep_head):
    PLANNED[name]().save_pretrained(tmp_path / "plain")
    quantize(tmp_path / "plain", tmp_path / "made", quant, **how, keep_head=keep_head)
    held = sum(tensor.nbytes for tensor in load_file(tmp_path / "made" / "model.safetensors").values())
    planned = plan(read_config(tmp_path / "made"))
    assert (planned.precision.quant, planned.weights[quant]) == (quant, held)

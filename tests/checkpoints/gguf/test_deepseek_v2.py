"""A DeepSeek-V2 in GGUF: there and back, and files that hold ``attn_kv_b`` whole, as older converters wrote them."""

from dataclasses import replace

import pytest
import torch

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.gguf.file import open_gguf
from modelwright.errors import CheckpointError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.gguf import read_config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.serving.load import load
from tests.checkpoints.gguf.files import write_file
from tests.checkpoints.gguf.test_llama import tensors_of
from tests.checkpoints.gguf.tokenizers import write_byte_level

IDS = torch.randint(3, 500, (2, 20), generator=torch.manual_seed(1))
TINY = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 2, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 24, "max_position_embeddings": 128, "initializer_range": 0.1,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
NOAUX = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 4, "topk_group": 2, "norm_topk_prob": True}
WAYS = {
    "plain": {},
    "lite": {"q_lora_rank": None, "tie_word_embeddings": True},
    "yarn": {"rope_scaling": YARN, "routed_scaling_factor": 16.0},
    "grouped": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "noaux": NOAUX,
    "dense": {"n_routed_experts": None, "first_k_dense_replace": 3},
}


def written(folder, **fields):
    torch.manual_seed(0)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**TINY | fields))
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(std=0.5)
    model.save_pretrained(folder)
    write_byte_level(folder, "deepseek-llm")
    return model.eval()


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
@torch.no_grad()
def test_there_and_back_is_equal(tmp_path, fields):
    model = written(tmp_path / "hf", **fields)
    convert(tmp_path / "hf", tmp_path / "model.gguf")
    given, back = tensors_of(tmp_path / "hf"), tensors_of(tmp_path / "model.gguf")
    assert given.keys() == back.keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in given.items())
    read = load(tmp_path / "model.gguf")
    assert torch.equal(read.model(IDS).logits, model(IDS).logits)
    assert read.tokenizer("Hi, 1234!").input_ids == load(tmp_path / "hf").tokenizer("Hi, 1234!").input_ids


def test_queries_that_are_not_compressed_have_no_rank(tmp_path):
    """llama.cpp asks for the rank but at the numbers of layers of DeepSeek's own Lite models, and takes 0 as none."""
    written(tmp_path / "hf", **WAYS["lite"])
    convert(tmp_path / "hf", tmp_path / "model.gguf")
    assert open_gguf(tmp_path / "model.gguf").metadata["deepseek2.attention.q_lora_rank"] == 0


def test_experts_in_blocks_are_read_one_by_one(tmp_path):
    written(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="q8_0")
    file = open_gguf(tmp_path / "model.gguf")
    assert (
        file.tensors["blk.1.ffn_up_exps.weight"].type == "Q8_0"
        and file.tensors["blk.1.ffn_gate_inp.weight"].type == "F32"
    )
    whole = file.tensors["blk.1.ffn_up_exps.weight"].read()
    back = tensors_of(tmp_path / "model.gguf")
    for expert in range(8):
        assert torch.equal(back[f"model.layers.1.mlp.experts.{expert}.up_proj.weight"], whole[expert])


@torch.no_grad()
def test_a_whole_kv_b_is_read_too(tmp_path):
    model = written(tmp_path / "hf", rope_scaling=YARN)
    convert(tmp_path / "hf", tmp_path / "new.gguf")
    file, given = open_gguf(tmp_path / "new.gguf"), tensors_of(tmp_path / "hf")
    metadata = {key: value for key, value in file.metadata.items() if "_mla" not in key}
    metadata |= {"deepseek2.attention.key_length": 24, "deepseek2.attention.value_length": 24}
    tensors = {name: (t.read().numpy(), "F32") for name, t in file.tensors.items() if not name.endswith("_b.weight")}
    tensors |= {name: (t.read().numpy(), "F32") for name, t in file.tensors.items() if "attn_q_b" in name}
    for layer in range(3):
        whole = given[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
        tensors[f"blk.{layer}.attn_kv_b.weight"] = (whole.numpy(), "F32")
    write_file(tmp_path / "old.gguf", metadata, tensors)
    assert torch.equal(load(tmp_path / "old.gguf").model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_scaling": YARN | {"mscale": 1.0}}, "yarn with one mscale: got type 'yarn', mscale 1.0"),
        ({"hidden_act": "gelu"}, "has hidden_act 'silu' alone, not 'gelu'"),
        ({"use_mla": False}, "attends in latent space: use_mla must be True, not False"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(tmp_path, fields, words):
    written(tmp_path / "hf", **fields)
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "hf", tmp_path / "model.gguf")


def test_another_family_is_refused(vl2, tmp_path):
    with pytest.raises(CheckpointError, match="GGUF files are written of deepseek_v2 and llama, not of deepseek_vl2"):
        convert(vl2, tmp_path / "model.gguf")


def test_a_factor_without_a_type_is_linear_and_refused(tmp_path):
    """As llama.cpp reads it; read as none, positions would turn four times as fast."""
    written(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model.gguf")
    read = open_gguf(tmp_path / "model.gguf")
    values = {**read.metadata, "deepseek2.rope.scaling.factor": 4.0}
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.type 'linear' is not read here"):
        read_config(replace(read, metadata=values))

"""Conversions: byte-equal round trips, shards, types, key heads, what is dropped, and what is refused by name."""

import json
import os

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.conversion_source import Dropped
from modelwright.checkpoints.convert import Report, convert
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.mindformers.names import mindformers_tensors, packing_of
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.families.read import read_config
from tests.fakes import MHA, MOE, official_weights, tiny_v2, tiny_vl2, tokens, write_checkpoint, write_mindformers
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

EXPERTS = {"expert_num": 4, "num_experts_chosen": 2, "use_gmm": True}
SHARED = EXPERTS | {"shared_expert_num": 2, "use_shared_expert_gating": True, "balance_via_topk_bias": True}
BIASES = {"qkv_has_bias": True, "attn_proj_has_bias": True}
VARIANTS = {
    "dense": {},
    "tied": {"tie_word_embeddings": True},
    "biases": BIASES,
    "one key head each": {"n_kv_heads": None},
    "biases, tied": BIASES | {"tie_word_embeddings": True},
    "experts": {"moe_config": EXPERTS | {"use_gmm": False, "routing_policy": "TopkRouterV2"}},
    "grouped experts": {"moe_config": EXPERTS},
    "inference experts": {"moe_config": SHARED, "use_past": True},
    "shared experts, biases": {"moe_config": SHARED, **BIASES},
}


def random_weights(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """MindFormers tensors of the model, norms and routers in fp32 and the rest in fp16."""
    wide = ("norm.weight", "norm_out.weight", "dense.weight", "topk_bias")
    torch.manual_seed(0)
    return {
        tensor.name: torch.randn(tensor.shape, dtype=torch.float32 if tensor.name.endswith(wide) else torch.float16)
        for tensor in mindformers_tensors(config, packing_of(config))
    }


def write(folder, shards=1, sections=None, **fields):
    """A MindFormers folder whose YAML is as MindFormers' users write it, with random weights."""
    values = MINDFORMERS | {"param_init_type": "float16"} | fields
    return write_mindformers(folder, values, random_weights(LlamaConfig(**values)), shards, **(sections or {}))


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same_bytes(found, wanted) -> bool:
    assert found.keys() == wanted.keys()
    return all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and torch.equal(found[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))
        for name, tensor in wanted.items()
    )


def refusal(src, dst, error=CheckpointError, **options) -> str:
    """The message of a refused conversion, which leaves nothing behind."""
    before = sorted(os.listdir(dst.parent))
    with pytest.raises(error) as caught:
        convert(src, dst, **options)
    assert sorted(os.listdir(dst.parent)) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_mindformers_to_hugging_face_and_back_is_byte_equal(name, fused, tmp_path):
    source = write(tmp_path / "a", shards=3, qkv_concat=fused, **VARIANTS[name])
    first = convert(source, tmp_path / "canonical", to="mindformers")
    convert(tmp_path / "canonical", tmp_path / "b", max_shard_size=20_000)
    last = convert(tmp_path / "b", tmp_path / "c", to="mindformers")
    assert same_bytes(weights_of(tmp_path / "c"), weights_of(source))
    assert read_config(tmp_path / "c" / "mindformers.yaml") == read_config(source / "run.yaml")
    assert first.bytes == last.bytes and first.dropped == last.dropped == ()
    convert(tmp_path / "c", tmp_path / "d")
    assert same_bytes(weights_of(tmp_path / "d"), weights_of(tmp_path / "b"))
    assert (tmp_path / "d" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    convert(tmp_path / "d", tmp_path / "e", to="mindformers")
    for file in ("model.safetensors", "mindformers.yaml"):
        assert (tmp_path / "e" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_reads_what_is_written(name, tmp_path):
    source = write(tmp_path / "a", qkv_concat=True, **VARIANTS[name])
    convert(source, tmp_path / "b")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    assert model.config == read_config(tmp_path / "b")


@pytest.mark.parametrize("name", ["biases", "experts", "shared experts, biases"])
def test_fusing_and_splitting_are_inverses(name, tmp_path):
    source = write(tmp_path / "a", **VARIANTS[name])
    convert(source, tmp_path / "b", to="mindformers", qkv_concat=True)
    assert "model.layers.0.attention.w_qkv.weight" in weights_of(tmp_path / "b")
    assert read_config(tmp_path / "b").qkv_concat
    convert(tmp_path / "b", tmp_path / "c", to="mindformers", qkv_concat=False)
    assert same_bytes(weights_of(tmp_path / "c"), weights_of(source))


def test_a_hugging_face_folder_comes_back_from_mindformers(tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="mindformers", qkv_concat=True)
    convert(tmp_path / "b", tmp_path / "c")
    assert same_bytes(weights_of(tmp_path / "c"), weights_of(tmp_path / "a"))
    ids = tokens(2, 7)
    with torch.no_grad():
        before, after = (LlamaForCausalLM.from_pretrained(tmp_path / x)(ids).logits for x in "ac")
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)  # the fused product adds in another order


def test_a_split_checkpoint_beside_a_config_that_fuses_is_read_as_it_lies(tmp_path):
    source = write(tmp_path / "a")
    run = yaml.safe_load((source / "run.yaml").read_text())
    run["model"]["model_config"]["qkv_concat"] = True
    (source / "run.yaml").write_text(yaml.safe_dump(run))
    convert(source, tmp_path / "b", to="mindformers")
    assert "model.layers.0.attention.w_qkv.weight" in weights_of(tmp_path / "b")


def test_the_yaml_may_be_named_among_several(tmp_path):
    source = write(tmp_path / "a")
    (source / "finetune.yml").write_text("model: 1")
    message = refusal(source, tmp_path / "b")
    assert message == f"{source} holds several YAML files (finetune.yml, run.yaml); name the one to use as SRC"
    assert convert(source / "run.yaml", tmp_path / "b").tensors == 21


def test_files_of_any_name_are_mindformers_shards(tmp_path):
    source = write(tmp_path / "a")
    weights = weights_of(source)
    (source / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[::2]}, source / "part0.safetensors")
    save_file({name: weights[name] for name in names[1::2]}, source / "part1.safetensors")
    (source / "param_name_map.json").write_text("{}")
    convert(source, tmp_path / "b", to="mindformers")
    assert same_bytes(weights_of(tmp_path / "b"), weights)
    assert not (tmp_path / "b" / "param_name_map.json").exists()


def test_the_report_counts_and_says_what_was_dropped(tmp_path):
    source = write(tmp_path / "a", sections={"run_mode": "finetune", "optimizer": {"type": "AdamW"}})
    weights = weights_of(source)
    size = sum(tensor.nbytes for tensor in weights.values())
    cache = "model.layers.0.attention.infer_attention.paged_attention_mgr.key_cache"
    extra = {
        cache: torch.zeros(4),
        "adam_v.model.norm_out.weight": torch.zeros(32),
        "global_step": torch.zeros(1).int(),
    }
    save_file(weights | extra, source / "model.safetensors")
    (source / "train.log").write_text("step 1")
    (source / "model.onnx").write_text("")
    report = convert(source, tmp_path / "b", max_shard_size=30_000)
    assert (report.tensors, report.bytes) == (21, size)
    assert report.shards == len(list((tmp_path / "b").glob("model-*.safetensors"))) > 1
    assert set(report.dropped) == {
        Dropped(cache, "a cache of the run"),
        Dropped("adam_v.model.norm_out.weight", "state of the optimizer"),
        Dropped("global_step", "state of the training run"),
        Dropped("run.yaml run_mode", "about a training run, not the model"),
        Dropped("run.yaml optimizer", "about a training run, not the model"),
        Dropped("train.log", "not a file that a model is read from"),
        Dropped("model.onnx", "not a file that a model is read from"),
    }


def test_the_sections_of_the_yaml_override_the_models(tmp_path):
    sections = {
        "parallel_config": {"model_parallel": 2},
        "recompute_config": {"recompute": True},
        "runner_config": {"batch_size": 4},
        "calculate_per_token_loss": True,
    }
    source = write(tmp_path / "a", sections=sections, batch_size=1, parallel_config={"model_parallel": 1})
    assert convert(source, tmp_path / "b").dropped == ()
    config = read_config(tmp_path / "b")
    assert (config.batch_size, config.calculate_per_token_loss) == (4, True)
    assert (config.parallel_config.model_parallel, config.parallel_config.recompute.recompute) == (2, True)


def test_the_path_of_another_checkpoint_is_not_carried_along(tmp_path):
    source = write(tmp_path / "a", checkpoint_name_or_path="")
    text = (source / "run.yaml").read_text().replace("checkpoint_name_or_path: ''", "checkpoint_name_or_path: /gone")
    (source / "run.yaml").write_text(text)
    for to, folder in (("hf", tmp_path / "b"), ("mindformers", tmp_path / "c")):
        report = convert(source, folder, to=to)
        assert Dropped("checkpoint_name_or_path (/gone)", "the new folder holds the weights") in report.dropped
        assert read_config(folder).checkpoint_name_or_path == ""


def test_an_unchanged_config_is_copied_as_it_is(tmp_path):
    source = write(tmp_path / "a", sections={"optimizer": {"type": "AdamW"}})
    report = convert(source, tmp_path / "b", to="mindformers", max_shard_size=20_000)
    assert report.dropped == () and report.shards > 1
    assert (tmp_path / "b" / "run.yaml").read_bytes() == (source / "run.yaml").read_bytes()


def test_norms_keep_their_type_unless_another_is_asked_for(tmp_path):
    source = write(tmp_path / "a", moe_config=SHARED, use_past=True)
    convert(source, tmp_path / "b")
    found = weights_of(tmp_path / "b")
    assert found["model.norm.weight"].dtype == torch.float32
    assert found["lm_head.weight"].dtype == torch.float16
    convert(source, tmp_path / "c", dtype="bfloat16")
    cast = weights_of(tmp_path / "c")
    bias = "model.layers.0.block_sparse_moe.gate.e_score_correction_bias"
    assert {name for name, tensor in cast.items() if tensor.dtype != torch.bfloat16} == {
        bias,
        bias.replace("0", "1"),
    }
    assert torch.equal(cast["lm_head.weight"], found["lm_head.weight"].to(torch.bfloat16))
    assert json.loads((tmp_path / "c" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sampling_goes_into_the_generation_config_and_comes_back(tmp_path):
    source = write(tmp_path / "a", top_k=7, top_p=0.9, repetition_penalty=1.1, max_decode_length=99)
    convert(source, tmp_path / "b")
    said = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert (said["do_sample"], said["top_k"], said["top_p"], said["max_length"]) == (True, 7, 0.9, 99)
    said |= {"top_k": 3, "temperature": 0.6}
    (tmp_path / "b" / "generation_config.json").write_text(json.dumps(said))
    report = convert(tmp_path / "b", tmp_path / "c", to="mindformers")
    assert report.dropped == (Dropped("generation_config.json temperature", "MindFormers' config has no such field"),)
    assert read_config(tmp_path / "c").top_k == 3
    assert not (tmp_path / "c" / "generation_config.json").exists()


def test_companions_are_copied(tmp_path):
    source = write(tmp_path / "a")
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer.model").write_bytes(b"\0")
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "vocab.txt").write_text("a")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert convert(source, tmp_path / "b").dropped == ()
    names = ("tokenizer.json", "tokenizer.model", "tokenizer/vocab.txt", "chat_template.jinja")
    assert len({path.stat().st_mode for path in (tmp_path / "b").iterdir() if path.is_file()}) == 1
    for name in (*names, "additional_chat_templates/tools.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("kind", ["hf", "mindformers"])
def test_pooled_heads_are_means_of_neighbours(kind, tmp_path):
    source = write(tmp_path / "a", n_kv_heads=4, qkv_concat=True, **BIASES)
    convert(source, tmp_path / "b")
    report = convert(source, tmp_path / "c", to=kind, num_key_value_heads=2)
    if kind == "mindformers":
        convert(tmp_path / "c", tmp_path / "d")
    before, after = weights_of(tmp_path / "b"), weights_of(tmp_path / ("c" if kind == "hf" else "d"))
    assert read_config(tmp_path / "c").num_key_value_heads == 2
    for name, tensor in before.items():
        if "k_proj" in name or "v_proj" in name:
            heads = tensor.float().unflatten(0, (2, 2, 8))
            wanted = ((heads[:, 0] + heads[:, 1]) / 2).flatten(0, 1).half()
            assert torch.equal(after[name], wanted)
        else:
            assert torch.equal(after[name], tensor)
    assert report.dropped == ()


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_vl_v2"])
def test_pooling_deepseek_with_equal_heads_changes_nothing_but_their_number(family, tmp_path):
    heads = MHA | {"num_key_value_heads": 4}
    model = tiny_v2(base=heads) if family == "deepseek_v2" else tiny_vl2(language=heads)
    language = model if family == "deepseek_v2" else model.language
    for layer in language.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            pairs = projection.weight.data.unflatten(0, (2, 2, -1))
            pairs[:, 1] = pairs[:, 0]
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", num_key_value_heads=2)
    pooled = type(model).from_pretrained(tmp_path / "b")
    assert pooled.config.get_text_config().num_key_value_heads == 2
    ids = tokens(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(pooled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert report.bytes < sum(path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors"))


def test_every_family_is_sharded_and_cast(tmp_path):
    tiny_vl2().save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", max_shard_size="50KB", dtype="bfloat16")
    found, before = weights_of(tmp_path / "b"), weights_of(tmp_path / "a")
    assert report.shards > 1 and found.keys() == before.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in before.items())
    assert max(path.stat().st_size for path in (tmp_path / "b").glob("*.safetensors")) < 60_000
    again = convert(tmp_path / "b", tmp_path / "c")
    assert again.shards == 1 and same_bytes(weights_of(tmp_path / "c"), found)
    assert (tmp_path / "c" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_the_bias_of_a_deepseek_router_stays_wide(tmp_path):
    tiny_v2(base=MOE, topk_method="noaux_tc", n_group=2, topk_group=1).save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", dtype="float16")
    wide = {name for name, tensor in weights_of(tmp_path / "b").items() if tensor.dtype == torch.float32}
    assert wide == {"model.layers.1.mlp.gate.e_score_correction_bias"}
    assert DeepseekV2ForCausalLM.from_pretrained(tmp_path / "b").dtype == torch.float16


def test_tied_heads_and_unused_tensors_of_hugging_face_are_dropped_with_reasons(tmp_path):
    model = tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True)
    weights = official_weights(model) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    config = json.loads(model.config.to_json_string())
    write_checkpoint(tmp_path / "a", config, weights)
    assert set(convert(tmp_path / "a", tmp_path / "b").dropped) == {
        Dropped("lm_head.weight", "tie_word_embeddings: it is the embedding's"),
        Dropped("model.layers.0.self_attn.rotary_emb.inv_freq", "LlamaForCausalLM does not read it"),
    }
    assert "lm_head.weight" not in weights_of(tmp_path / "b")


def test_progress_ends_at_the_total(tmp_path):
    seen = []
    report = convert(write(tmp_path / "a"), tmp_path / "b", progress=lambda *args: seen.append(args))
    assert len(seen) == report.tensors
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (report.bytes, report.bytes) and {total for *_, total in seen} == {report.bytes}


def test_a_report_is_frozen():
    with pytest.raises(AttributeError):
        Report(1, 2, 1, ()).tensors = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_misfits_are_named_in_one_error(tmp_path):
    source = write(tmp_path / "a")
    weights = weights_of(source)
    del weights["model.layers.1.attention.wk.weight"]
    weights["model.layers.0.attention.wq.weight"] = torch.zeros(32, 16)
    weights["model.layers.2.ffn_norm.weight"] = torch.zeros(32)
    weights["model.norm_out.weight"] = torch.zeros(32, dtype=torch.int32)
    save_file(weights, source / "model.safetensors")
    assert refusal(source, tmp_path / "b") == (
        "the checkpoint does not fit MindFormers' LlamaForCausalLM: missing model.layers.1.attention.wk.weight; "
        "unexpected model.layers.2.ffn_norm.weight; misshapen model.layers.0.attention.wq.weight ([32, 16] in "
        "model.safetensors, and the config asks for [32, 32]); not of type F64, F32, F16 or BF16 "
        "model.norm_out.weight (I32)"
    )


def test_a_misfit_of_hugging_face_is_named(tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    weights = official_weights(model)
    del weights["model.norm.weight"]
    write_checkpoint(tmp_path / "a", json.loads(model.config.to_json_string()), weights)
    assert "missing model.norm.weight" in refusal(tmp_path / "a", tmp_path / "b", to="mindformers")


@pytest.mark.parametrize(
    ("fields", "to", "words"),
    [
        ({"extend_method": "DYNAMIC_NTK", "is_dynamic": True}, "hf", '"DYNAMIC_NTK" has no rope type in Hugging Face'),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(fields, to, words, tmp_path):
    assert words in refusal(write(tmp_path / "a", **fields), tmp_path / "b", ConfigError, to=to)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 'rope type "dynamic"'),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "gelu"}, 'hidden_act must be "silu"'),
        ({"attention_dropout": 0.1}, "attention_dropout (0.1) must be 0 in MindFormers"),
    ],
)
def test_what_mindformers_cannot_express_is_refused(fields, words, tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    config = json.loads(model.config.to_json_string())
    plain = {key: config[key] for key in (*HUGGING_FACE, "model_type", "architectures")} | fields
    write_checkpoint(tmp_path / "a", plain, official_weights(model))
    assert words in refusal(tmp_path / "a", tmp_path / "b", ConfigError, to="mindformers")


def test_other_models_have_no_mindformers_layout(tmp_path):
    tiny_v2().save_pretrained(tmp_path / "a")
    message = refusal(tmp_path / "a", tmp_path / "b", ConfigError, to="mindformers")
    assert message == "MindFormers' layout is written for LlamaForCausalLM only, not for DeepseekV2ForCausalLM"


def test_heads_that_cannot_be_pooled_are_refused(tmp_path):
    source = write(tmp_path / "a", n_kv_heads=4)
    assert refusal(source, tmp_path / "b", ConfigError, num_key_value_heads=3) == (
        "num_key_value_heads (4) must be divisible by the new num_key_value_heads (3)"
    )
    assert "(8)" in refusal(source, tmp_path / "b", ConfigError, num_key_value_heads=8)
    tiny_v2().save_pretrained(tmp_path / "v2")
    assert "latent attention (use_mla=True) has none" in refusal(
        tmp_path / "v2", tmp_path / "b", ConfigError, num_key_value_heads=1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "ggml"}, "to must be one of hf, mindformers, gguf; got 'ggml'"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16; got 'int8'"),
        ({"max_shard_size": "big"}, "max_shard_size must be bytes or a number with KB, MB or GB, not 'big'"),
        (
            {"qkv_concat": True},
            "qkv_concat fuses projections in MindFormers' layout; Hugging Face's keeps them apart",
        ),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    assert refusal(write(tmp_path / "a"), tmp_path / "b", ConfigError, **options) == message


def test_a_source_without_config_or_weights_is_refused(tmp_path):
    source = write(tmp_path / "a")
    (source / "run.yaml").unlink()
    assert "without a config" in refusal(source, tmp_path / "b")
    (source / "model.safetensors").rename(source / "llama.ckpt")
    assert "which only MindSpore reads" in refusal(source, tmp_path / "b")
    assert "is not a folder and not a hub id" in refusal(tmp_path / "none" / "such", tmp_path / "b")


def test_weights_of_strange_names_beside_a_yaml_are_named(tmp_path):
    source = write(tmp_path / "a")
    weights = load_file(source / "model.safetensors")
    save_file({f"network.{name}": tensor for name, tensor in weights.items()}, source / "model.safetensors")
    message = refusal(source, tmp_path / "b")
    assert "has no config.json, and its weights have names (network.lm_head.weight) that are none of Mind" in message


def test_a_lora_that_was_not_merged_is_refused(tmp_path):
    source = write(tmp_path / "a")
    weights = load_file(source / "model.safetensors")
    pair = {f"model.layers.0.attention.wq.mindpet_delta_lora_{x}": torch.zeros(2, 2) for x in "ab"}
    save_file(weights | pair, source / "model.safetensors")
    assert "holds a LoRA beside the weights (model.layers.0.attention.wq.mindpet_delta_lora_a): merge it" in refusal(
        source, tmp_path / "b"
    )


def test_a_yaml_beside_hugging_face_weights_is_refused_when_named(tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "run.yaml").write_text("model: {}")
    message = refusal(tmp_path / "a" / "run.yaml", tmp_path / "b")
    assert message.endswith("is a MindFormers config, and the weights beside it have Hugging Face names")


def test_a_crash_leaves_nothing(tmp_path):
    def fail(name, done, total):
        if 2 * done > total:
            raise KeyboardInterrupt

    source = write(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "b", max_shard_size=20_000, progress=fail)
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_looks_like_a_checkpoint_before_the_end(tmp_path):
    source = write(tmp_path / "a")
    seen = set()
    convert(source, tmp_path / "b", max_shard_size=20_000, progress=lambda *_: seen.update(os.listdir(tmp_path)))
    assert "b" not in seen and len(seen) == 2 and all(name.startswith(".b.") for name in seen - {"a"})
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_target_in_use_is_refused_and_an_empty_one_is_filled(tmp_path):
    source = write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    convert(source, tmp_path / "b")
    assert refusal(source, tmp_path / "b") == f"{tmp_path / 'b'} is not empty; name a new folder"
    (tmp_path / "file").write_text("")
    assert refusal(source, tmp_path / "file") == f"{tmp_path / 'file'} is a file; name a new folder"
    assert "must not lie inside the folder to convert" in refusal(source, source / "b")


def test_the_files_can_be_opened_by_the_library_alone(tmp_path):
    convert(write(tmp_path / "a"), tmp_path / "b", max_shard_size=20_000)
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "b" / file, "pt") as tensors:
            assert name in tensors.keys() and tensors.metadata() == {"format": "pt"}  # noqa: SIM118

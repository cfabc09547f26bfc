"""Models of integers: what is rounded in every family, what stays, what is on disk, and what is refused."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from modelwright.checkpoints.quantized_model import METHODS, quantize_model
from modelwright.configs.engine import QuantSettings, weight_quantization
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.layers.moe import Router
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.weight_only import dequantise, quantise_int4, quantise_int8
from tests.fakes import MHA, MOE, tiny_v2, tiny_vl2
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # int4 needs inputs in runs of 64
V2 = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "q_lora_rank": None, "v_head_dim": 16}


def tiny_imagegpt():
    torch.manual_seed(0)
    return ImageGPTForCausalImageModeling(
        ImageGPTConfig(vocab_size=17, n_positions=16, n_embd=64, n_layer=2, n_head=2)
    ).eval()


IN_BF16 = "mindformers, experts, bf16"
MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE, **WIDE),
    "mindformers, fused": lambda: tiny_llama(qkv_concat=True, **WIDE),
    IN_BF16: lambda: tiny_llama(moe_config=EXPERTS, compute_dtype="bfloat16", param_init_type="bfloat16", **WIDE),
    "deepseek_v2": lambda: tiny_v2(**V2),
    "deepseek_v2, no latent": lambda: tiny_v2(base=MHA, **V2 | {"v_head_dim": 8}),
    "deepseek_vl2": lambda: tiny_vl2(language=MOE | V2, projector_config={"n_embed": 64, "input_dim": 16}),
    "imagegpt": tiny_imagegpt,
}


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 15)[None]).logits.float()


def assert_same_state(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


@pytest.mark.one_in(4)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_saved_and_rounded_while_loading_it_is_the_same_model(tmp_path, name, method):
    plain, quantized = MODELS[name](), quantize_model(MODELS[name](), method)
    quantized.save_pretrained(tmp_path / "stored", max_shard_size="30KB")
    assert len(list((tmp_path / "stored").glob("*.safetensors"))) > 1
    stored = type(plain).from_pretrained(tmp_path / "stored")
    plain.save_pretrained(tmp_path / "plain")
    asked = {"quantization_config": quantized.config.quant_config}
    rounded = type(plain).from_pretrained(tmp_path / "plain", **asked)
    for other in (stored, rounded):
        assert_same_state(quantized, other)
        assert torch.equal(logits(quantized), logits(other))
        assert weight_quantization(other.config) == weight_quantization(quantized.config)
    written = json.loads((tmp_path / "stored" / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == METHODS[method]
    assert not torch.equal(logits(plain), logits(quantized))


def with_wide_weights(quantized, plain, name):
    """`plain` with the numbers that the integers stand for, rounded to its type."""
    with torch.no_grad():
        for path, module in quantized.named_modules():
            twin = dict(plain.named_modules()).get(path)
            if isinstance(module, QuantizedLinear):
                wide = dequantise(module.stored, twin.weight.dtype)
                twin.weight.copy_(wide if twin.weight.shape == wide.shape and name != "imagegpt" else wide.t())
            elif isinstance(module, QuantizedExperts):
                for stack, kept in (("gate_up_proj", module.gate_up_proj), ("down_proj", module.down_proj)):
                    scales = getattr(module, f"{stack}_scale")
                    getattr(twin, stack).copy_(kept.float() * scales[..., None])
    return plain


@pytest.mark.parametrize("name", [name for name in MODELS if name != IN_BF16])
def test_it_computes_what_its_integers_stand_for(name):
    quantized = quantize_model(MODELS[name](), "int8")
    wide = with_wide_weights(quantized, MODELS[name](), name)
    torch.testing.assert_close(logits(quantized), logits(wide), rtol=2e-5, atol=2e-5)


def logits_and_experts(model):
    """The logits of one row, and of each token the experts that it reaches, in order, in all layers."""
    chosen = []
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [
        each.register_forward_hook(lambda *call: chosen.append(call[-1].chosen.sort(-1).values)) for each in routers
    ]
    found = logits(model)[0]
    for hook in hooks:
        hook.remove()
    return found, torch.cat(chosen, -1)


def test_in_bf16_it_is_as_near_to_fp32_as_with_wide_weights():
    """Both round at other places, so that neither is the other's reference, and a token that is as near to one expert
    as to another may reach either: those few that do are left out with what comes after them in their row, which reads
    them, as they are far from fp32 in either model."""
    types = {"compute_dtype": "float32", "param_init_type": "float32"}
    own, wide, alike = [], [], []
    for seed in range(8):
        plain = MODELS[IN_BF16]()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in plain.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
        exact = tiny_llama(moe_config=EXPERTS, **types, **WIDE)
        exact.load_state_dict({key: value.float() for key, value in plain.state_dict().items()})
        wanted, experts = logits_and_experts(quantize_model(exact, "int8"))
        quantized = quantize_model(copy.deepcopy(plain), "int8")
        same = torch.ones(len(wanted), dtype=torch.bool)
        for model, errors in ((quantized, own), (with_wide_weights(quantized, plain, IN_BF16), wide)):
            found, reached = logits_and_experts(model)
            errors.append((found - wanted).abs().mean(-1))
            same &= (reached == experts).all(-1)
        alike.append(same.cumprod(0).bool())
    of_both = torch.cat(alike)
    assert of_both.float().mean() > 0.8
    assert 0 < torch.cat(own)[of_both].mean() <= 1.1 * torch.cat(wide)[of_both].mean()


def test_what_stays_as_it_is():
    quantized = quantize_model(MODELS["deepseek_vl2"](), "int8")
    kept = {name.rpartition(".")[0] for name, _ in quantized.named_parameters()}
    rounded = {name for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)}
    stacks = {name for name, module in quantized.named_modules() if isinstance(module, QuantizedExperts)}
    assert stacks == {"language.model.layers.1.mlp.experts"}
    assert all(name.startswith("language.model.layers.") for name in rounded)
    layer = "language.model.layers.1"
    assert {f"{layer}.self_attn.{part}" for part in ("q_proj", "kv_a_proj_with_mqa", "o_proj")} <= rounded
    assert {f"{layer}.self_attn.kv_b_proj", f"{layer}.mlp.gate", "language.lm_head"} <= kept
    assert {name for name in kept if name.startswith(("vision", "projector"))}


def test_the_head_is_rounded_where_asked():
    model = quantize_model(MODELS["llama"](), "int8", keep_head=False)
    assert isinstance(model.lm_head, QuantizedLinear) and model.config.quant_config["lm_head"] is True
    assert (model.lm_head.in_features, model.lm_head.out_features) == (64, 64)
    with pytest.raises(ConfigError, match=r"lm_head \(True\) needs tie_word_embeddings=False"):
        quantize_model(tiny_llama(tie_word_embeddings=True, **WIDE), "int8", keep_head=False)


def test_names_types_and_shapes_on_disk(tmp_path):
    plain = MODELS["deepseek_v2"]()
    given = plain.state_dict()
    for method in ("int8", "int4"):
        quantize_model(MODELS["deepseek_v2"](), method).save_pretrained(tmp_path / method)
    eight, four = (load_file(tmp_path / method / "model.safetensors") for method in ("int8", "int4"))
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    expert = given["model.layers.1.mlp.experts.gate_up_proj"][3, 64:]  # gate rows, then up rows
    stored = quantise_int8(expert)
    assert torch.equal(eight[name], stored.steps) and eight[name].dtype == torch.int8
    assert torch.equal(eight[f"{name}_scale"], stored.scales) and eight[f"{name}_scale"].dtype == torch.float32
    stored = quantise_int4(expert, 32)
    assert torch.equal(four[name], stored.steps) and four[name].dtype == torch.uint8
    assert list(four[name].shape) == [64, 32] and list(four[f"{name}_scale"].shape) == [64, 2]
    assert torch.equal(four[f"{name}_scale"], stored.scales) and four[f"{name}_scale"].dtype == torch.bfloat16
    assert torch.equal(four[f"{name}_offset"], stored.offsets) and four[f"{name}_offset"].dtype == torch.bfloat16
    assert four.keys() - eight.keys() == {f"{name}_offset" for name in four if f"{name}_scale" in four}
    assert eight["lm_head.weight"].dtype == torch.float32


OLDER = {"quant_method": "int4_weight_only", "group_size": 64}
"""What a folder says that was written when int4 had no offsets."""


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MODELS)
def test_an_older_folder_without_offsets_says_so_by_its_tensors(tmp_path, name):
    quantized = quantize_model(MODELS[name](), "int4", 64, symmetric=True)
    quantized.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    assert written["quantization_config"] == OLDER | {"symmetric": True}
    path.write_text(json.dumps(written | {"quantization_config": OLDER}))
    loaded = type(quantized).from_pretrained(tmp_path)
    assert_same_state(quantized, loaded)
    assert torch.equal(logits(quantized), logits(loaded))
    assert weight_quantization(loaded.config) == QuantSettings(weights="int4", group=64, symmetric=True)
    network = type(quantized).read(tmp_path, type(quantized.config).from_pretrained(tmp_path))
    assert_same_state(quantized, network)


def test_an_older_folder_that_a_config_names_too(tmp_path):
    quantized = quantize_model(tiny_llama(**WIDE), "int4", 64, symmetric=True)
    quantized.save_pretrained(tmp_path)
    asking = tiny_llama(**WIDE, quant_config=OLDER).config
    asking.checkpoint_name_or_path = str(tmp_path)
    model = type(quantized).from_config(asking)
    assert_same_state(quantized, model)
    assert weight_quantization(model.config) == QuantSettings(weights="int4", group=64, symmetric=True)


def test_offsets_that_a_config_promises_must_be_there(tmp_path):
    quantize_model(MODELS["llama"](), "int4").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("_offset")}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.0\.mlp\.down_proj\.weight_offset"):
        LlamaForCausalLM.from_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    asks = {"quantization_config": {"quant_method": "int4_weight_only", "symmetric": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | asks))
    with pytest.raises(CheckpointError, match=r"unexpected model\.layers\.0\.mlp\.down_proj\.weight_offset"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_columns_become_rows():
    """ImageGPT's matrices lie as [in, out]."""
    given = tiny_imagegpt().transformer.h[0].mlp.c_fc.weight  # [64, 256]
    stored = quantize_model(tiny_imagegpt(), "int8").transformer.h[0].mlp.c_fc.stored
    assert torch.equal(stored.steps, quantise_int8(given.t().contiguous()).steps)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("model.layers.0.mlp.up_proj.weight_scale"), "missing model.layers.0.mlp.up_proj.weight_scale"),
    (
        lambda w: w.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(3)}),
        r"model.layers.0.mlp.up_proj.weight_scale has shape \[3\] in model.safetensors, .* asks for \[128\]",
    ),
    (
        lambda w: w.update({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(128).bfloat16()}),
        "weight_scale is stored as BF16 in model.safetensors, and the config's quantization asks for torch.float32",
    ),
    (
        lambda w: w.update({"model.layers.0.mlp.up_proj.weight": torch.ones(128, 64)}),
        "up_proj.weight is stored as F32 in model.safetensors, and the config's quantization asks for torch.int8",
    ),
    (lambda w: w.update({"model.norm.weight_scale": torch.ones(1)}), "unexpected model.norm.weight_scale"),
])  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    quantize_model(MODELS["llama"](), "int8").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path)


def test_integers_without_a_word_in_the_config_are_refused(tmp_path):
    quantize_model(MODELS["llama"](), "int8").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": None}))
    with pytest.raises(CheckpointError, match=r"unexpected model\.layers\.0\.mlp\.down_proj\.weight_scale"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: quantize_model(MODELS["llama"](), "int3"), "method must be one of int8, int4, int8-dynamic; got 'int3'"),
    (lambda: quantize_model(MODELS["llama"](), "int4", group=16), "group_size must be one of 32, 64, 128; got 16"),
    (
        lambda: quantize_model(MODELS["llama"](), "int8", group=64),
        r"group \(64\) is for int4, and the method is int8, which has one scale for each output",
    ),
    (
        lambda: quantize_model(MODELS["llama"](), "int8-dynamic", symmetric=True),
        r"symmetric \(True\) is for int4, and the method is int8-dynamic",
    ),
    (
        lambda: quantize_model(tiny_llama(), "int4", group=32),
        r"the inputs of model.layers.0.self_attn.q_proj \(32\) must be divisible by group_size \(32\) and by 64",
    ),
    (
        lambda: quantize_model(MODELS["llama"](), "int4", group=128),
        r"the inputs of model.layers.0.self_attn.q_proj \(64\) must be divisible by group_size \(128\) and by 64",
    ),
    (
        lambda: quantize_model(quantize_model(MODELS["llama"](), "int8"), "int4"),
        "the model is quantized already, to int8; quantize the one it was made from",
    ),
    (
        lambda: tiny_v2(quantization_config={"quant_method": "int3"}),
        "quant_method must be one of int8_weight_only, .*; got 'int3'",
    ),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_config_that_asks_is_served_from_scratch_and_from_a_named_checkpoint(tmp_path):
    plain = tiny_llama(**WIDE)
    plain.save_pretrained(tmp_path)
    asks = {"quant_config": {"quant_method": "rtn", "weight_dtype": "int8", "kvcache_dtype": "int8"}}
    asking = tiny_llama(**WIDE, **asks).config
    asking.checkpoint_name_or_path = str(tmp_path)
    model = type(plain).from_config(asking)
    assert_same_state(model, quantize_model(plain, "int8"))
    assert weight_quantization(model.config) == QuantSettings(weights="int8", kv_cache="int8")


def test_a_cache_that_is_quantized_stays_so():
    model = tiny_llama(quant_config={"quant_method": "int8_kv"}, **WIDE)
    settings = weight_quantization(quantize_model(model, "int4", group=32).config)
    assert settings == QuantSettings(weights="int4", kv_cache="int8", group=32)


def test_transformers_neither_takes_it_up_nor_warns(tmp_path, caplog):
    quantize_model(MODELS["deepseek_v2"](), "int8").save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).quantization_config == {"quant_method": "int8_weight_only"}
    caplog.clear()
    model = type(MODELS["deepseek_v2"]()).from_pretrained(tmp_path)
    assert getattr(model, "hf_quantizer", None) is None
    assert not [record for record in caplog.records if re.search("quantiz", record.getMessage())]


def test_another_type_leaves_the_stored_numbers_alone():
    model = quantize_model(MODELS["deepseek_v2"](), "int8")
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "_proj" in name}
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.lm_head.weight.dtype == torch.bfloat16
    for name, buffer in model.named_buffers():
        if name in before:
            assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name]), name
    assert torch.isfinite(logits(model)).all()


def test_a_model_of_which_a_part_lies_on_disk_is_refused_before_it_is_changed(tmp_path):
    tiny_llama(base=HUGGING_FACE, **WIDE).save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    where = {"device_map": places, "offload_folder": tmp_path / "disk"}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", **where)
    names = list(model.state_dict())
    with pytest.raises(ConfigError, match=r"q_proj.weight is on the meta device, as what device_map moves"):
        quantize_model(model, "int8")
    assert list(model.state_dict()) == names and model.config.quant_config is None

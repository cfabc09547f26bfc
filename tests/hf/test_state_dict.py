"""A state dict is read as the folder that holds the same tensors is, and names are rewritten as transformers does."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.llama.model import LlamaForCausalLM, LlamaModel
from tests.fakes import MOE, NOAUX, VARIANTS, official_weights, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, MINDFORMERS, tiny_llama

MODELS = {
    **{f"deepseek_v2 {name}": lambda base=base: tiny_v2(base=base) for name, base in VARIANTS.items()},
    "deepseek_vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, experts": lambda: tiny_llama(base=MINDFORMERS, moe_config=EXPERTS),
    "llama, fused": lambda: tiny_llama(base=MINDFORMERS, qkv_concat=True),
    "imagegpt": tiny_imagegpt,
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def numbers(model):
    return {name: (tensor.dtype, tensor.tolist()) for name, tensor in model.state_dict().items()}


def from_state(model, state, **kwargs):
    return type(model).from_pretrained(None, config=copy.deepcopy(model.config), state_dict=state, **kwargs)


@pytest.mark.parametrize("asked", [{}, {"dtype": "bfloat16"}])
def test_official_names_are_read_as_from_the_folder(asked, model, tmp_path):
    model.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path, **asked)
    made = from_state(model, load_file(tmp_path / "model.safetensors"), **asked)
    assert numbers(made) == numbers(read)
    assert not made.training


def test_names_in_memory_are_read_too_and_the_numbers_are_copied(model):
    state = model.state_dict()
    made = from_state(model, state)
    assert numbers(made) == numbers(model)
    for tensor in made.parameters():
        tensor.data.zero_()
    assert any(tensor.any() for tensor in state.values())


def test_a_state_of_transformers_own_model_gives_its_logits():
    torch.manual_seed(0)
    values = MOE | {"num_key_value_heads": 4}
    theirs = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**values)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = DeepseekV2ForCausalLM.from_pretrained(None, config=theirs.config, state_dict=theirs.state_dict())
    torch.testing.assert_close(ours(tokens(2, 9)).logits, theirs(tokens(2, 9)).logits, atol=1e-5, rtol=1e-5)


def test_the_state_of_a_decoder_alone_has_no_prefix():
    whole = tiny_v2()
    decoder = {name.removeprefix("model."): tensor for name, tensor in whole.state_dict().items()}
    assert numbers(from_state(whole, decoder)) == numbers(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"model.layers.1.mlp.experts.3.up_proj.weight": None}, "is a NoneType"),
        (lambda s: s | {"model.norm.weight": torch.empty(32, device="meta")}, "is a tensor on the meta device"),
        (lambda s: s | {"model.norm.weight": torch.ones(31)}, r"\[31\] in the state dict"),
        (lambda s: s | {"model.norm.weight": torch.ones(32, dtype=torch.long)}, "stored as torch.int64 in the state"),
        (lambda s: s | {"model.norm.weight": torch.full((32,), torch.nan)}, "in the state dict holds NaN"),
        (lambda s: {k: v for k, v in s.items() if ".3.up_proj" not in k}, "missing model.layers.1.mlp.experts.3.up"),
        (lambda s: s | {"model.layers.9.norm": torch.ones(1)}, "unexpected model.layers.9.norm"),
    ],
)
def test_what_a_folder_would_be_refused_for_is_refused(change, message):
    model = tiny_v2()
    with pytest.raises(CheckpointError, match=message):
        from_state(model, change(official_weights(model)))


def test_a_stack_of_another_shape_is_named():
    model = tiny_v2()
    name = "model.layers.1.mlp.experts.down_proj"
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[7, 32, 16\] in the state dict"):
        from_state(model, model.state_dict() | {name: torch.ones(7, 32, 16)})


WIDER, MORE = {"moe_intermediate_size": 24}, {"n_routed_experts": 9}


@pytest.mark.parametrize(("names", "wider"), [("own", WIDER), ("official", WIDER), ("own", MORE)])
def test_layers_of_another_shape_start_afresh_where_that_is_asked(names, wider):
    model = tiny_v2()
    state = model.state_dict() if names == "own" else official_weights(model)
    config = type(model.config)(**MOE | wider)
    made = type(model).from_pretrained(None, config=config, state_dict=state, ignore_mismatched_sizes=True)
    read, before = made.state_dict(), model.state_dict()
    lost = {name for name in before if read[name].shape != before[name].shape}
    assert any("experts.down_proj" in name for name in lost)
    assert all(torch.equal(read[name], before[name]) for name in before.keys() - lost)
    assert all(read[name].isfinite().all() and read[name].any() for name in lost)


def test_names_of_mindformers_are_sent_to_convert(tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "mf", to="mindformers")
    state = load_file(next((tmp_path / "mf").glob("*.safetensors")))
    with pytest.raises(CheckpointError, match=r"under MindFormers' names: .* modelwright convert"):
        from_state(model, state)


def test_a_state_without_a_config_says_so():
    with pytest.raises(ConfigError, match="give one, or its folder, as config="):
        LlamaForCausalLM.from_pretrained(None, state_dict={})


def test_the_config_of_a_state_may_be_a_folder(tmp_path):
    model = tiny_v2(base=NOAUX)
    model.config.save_pretrained(tmp_path)
    made = DeepseekV2ForCausalLM.from_pretrained(None, config=tmp_path, state_dict=official_weights(model))
    assert numbers(made) == numbers(model)


def test_a_state_is_rounded_where_the_config_asks_for_it(tmp_path):
    model = tiny_llama(base=HUGGING_FACE, hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path)
    asked = {"quantization_config": {"quant_method": "int8_weight_only"}}
    read = LlamaForCausalLM.from_pretrained(tmp_path, **asked)
    made = from_state(model, official_weights(model), **asked)
    assert any(tensor.dtype == torch.int8 for tensor in made.state_dict().values())
    assert numbers(made) == numbers(read)
    assert numbers(from_state(read, read.state_dict())) == numbers(read)


RENAMINGS = [
    ({r"^backbone\.": "model."}, lambda name: name.replace("model.", "backbone.", 1)),
    (
        {"blocks": "layers", "mix": "self_attn"},
        lambda name: name.replace("layers", "blocks").replace("self_attn", "mix"),
    ),
    ({r"^(layers|norm|embed)": r"model.\1"}, lambda name: name.removeprefix("model.")),
]


@pytest.mark.parametrize(("mapping", "change"), RENAMINGS)
@pytest.mark.parametrize("cls", [LlamaForCausalLM, LlamaModel])
def test_key_mapping_renames_as_in_transformers(cls, mapping, change, tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path, key_mapping=mapping)
    ours, info = cls.from_pretrained(tmp_path, key_mapping=mapping, output_loading_info=True)
    assert numbers(ours) == numbers(theirs)
    wanted = numbers(model if cls is LlamaForCausalLM else model.model)
    assert numbers(ours) == wanted
    assert info["missing_keys"] == set()
    assert info["unexpected_keys"] == (set() if cls is LlamaForCausalLM else {"lm_head.weight"})


def test_key_mapping_reaches_each_expert(tmp_path):
    model = tiny_v2()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    named = {name.replace(".experts.", ".specialists."): tensor for name, tensor in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="specialists"):
        DeepseekV2ForCausalLM.from_pretrained(tmp_path)
    mapping = {r"\.specialists\.": ".experts."}
    assert numbers(DeepseekV2ForCausalLM.from_pretrained(tmp_path, key_mapping=mapping)) == numbers(model)
    assert numbers(from_state(model, named, key_mapping=mapping)) == numbers(model)


def test_key_mapping_reaches_stacks_of_experts_in_memory():
    model = tiny_v2()
    named = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    assert numbers(from_state(model, named, key_mapping={r"^module\.": ""})) == numbers(model)


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"input_layernorm": "post_attention_layernorm"}, CheckpointError, "makes .*post_attention_.* of two tensors"),
        ({"(": "x"}, ConfigError, "key_mapping holds what is no regular expression"),
        (["a"], ConfigError, "key_mapping must be a dict of regular expressions to names"),
        ({"a": 1}, ConfigError, "key_mapping must be a dict of regular expressions to names"),
    ],
)
def test_a_key_mapping_that_cannot_be_followed_is_refused(mapping, error, message, tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        LlamaForCausalLM.from_pretrained(tmp_path, key_mapping=mapping)


def test_a_quantization_that_is_none_of_ours_is_refused_of_a_state_too():
    model = tiny_llama(base=HUGGING_FACE)
    values = json.loads(model.config.to_json_string()) | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    config = type(model.config).from_dict(values)
    with pytest.raises(CheckpointError, match='quantized by "awq"'):
        LlamaForCausalLM.from_pretrained(None, config=config, state_dict=official_weights(model))

"""LoRA of layers that are parts of a stack here, as trained on the official layout: against ``W + scale * B @ A``."""

import copy
import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright import Engine, SamplingParams
from modelwright.checkpoints.places import split
from modelwright.errors import CheckpointError
from tests.fakes import MOE, tiny_v2, tiny_vl2, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

MLP = ("gate_proj", "up_proj", "down_proj")
CASES = {
    "deepseek_v2": (lambda: tiny_v2(base=MOE), ("q_b_proj", *MLP)),
    "without gates": (lambda: tiny_v2(base=MOE | {"gated_mlp": False}), ("o_proj", *MLP)),
    "deepseek_vl2": (tiny_vl2, ("q_proj", *MLP)),
    "llama with experts": (lambda: tiny_llama(moe_config=EXPERTS), ("q_proj", "w1", "w2", "w3")),
    "fused llama": (lambda: tiny_llama(qkv_concat=True), ("q_proj", "v_proj", "o_proj", "gate_proj")),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # peft's, on patterns


def official(model):
    return dict(split(model.places(), model.state_dict()))


def write_adapter(model, folder, leaves, keep=lambda layer: True, rank=lambda layer: 2, alpha=lambda layer: 6, **how):
    """An adapter of the official layers of these names, as peft writes it; returns the model with it added up."""
    random, tensors, sums, ranks, alphas = torch.Generator().manual_seed(0), {}, official(model), {}, {}
    for name, weight in list(sums.items()):
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or layer.rpartition(".")[2] not in leaves or not keep(layer):
            continue
        r = rank(layer)
        a, b = (0.3 * torch.randn(shape, generator=random) for shape in ((r, weight.shape[1]), (len(weight), r)))
        tensors |= {f"base_model.model.{layer}.lora_A.weight": a, f"base_model.model.{layer}.lora_B.weight": b}
        sums[name] = weight + alpha(layer) / (r**0.5 if how.get("use_rslora") else r) * b @ a
        ranks, alphas = ranks | {re.escape(layer): r}, alphas | {re.escape(layer): alpha(layer)}
    assert tensors
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    patterns = (
        {"rank_pattern": ranks, "alpha_pattern": alphas} if {*ranks.values()} | {*alphas.values()} != {2, 6} else {}
    )
    common = {"r": 2, "lora_alpha": 6, "inference_mode": True, "base_model_name_or_path": str(folder / "base")}
    peft.LoraConfig(target_modules=list(leaves), **common | patterns | how).save_pretrained(folder)
    model.save_pretrained(folder / "base")
    dense = copy.deepcopy(model)
    dense.load_state_dict(sums)
    return dense.eval()


def base(model, folder):
    return type(model).from_pretrained(folder / "base")


def differences(model, dense):
    ids = tokens(1, 7)
    with torch.no_grad():
        found, wanted = model(input_ids=ids).logits, dense(input_ids=ids).logits
    return float((found - wanted).abs().max())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", CASES)
def test_every_road_adds_the_products(name, tmp_path, monkeypatch):
    # transformers 5.24 asks for peft 0.22 where it saves, which was not released with it
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)
    build, leaves = CASES[name]
    model = build().eval()
    dense = write_adapter(model, tmp_path, leaves)
    assert differences(model, dense) > 0.1
    ours, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert differences(ours, dense) < 1e-4 and not info["missing_keys"] and not info["unexpected_keys"]
    theirs = peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path) if name != "llama with experts" else None
    for at, adapted in {"ours": ours, "theirs": theirs}.items():
        if adapted is None:
            continue
        assert differences(adapted, dense) < 1e-4
        saved = tmp_path / at
        adapted.save_pretrained(saved)
        assert differences(type(model).from_pretrained(saved), dense) < 1e-4  # read again, on both roads
        assert differences(peft.PeftModel.from_pretrained(base(model, tmp_path), saved), dense) < 1e-4
    if theirs is not None:
        with theirs.disable_adapter():
            assert differences(theirs, model) == 0
        merged = theirs.merge_and_unload()
        assert differences(merged, dense) < 1e-4
        merged.save_pretrained(tmp_path / "merged")
        assert load_file(tmp_path / "merged" / "model.safetensors").keys() == official(model).keys()


def test_where_peft_finds_no_module_our_road_is_the_one(tmp_path):
    """Of Mixtral's names none is a module's here: peft says so before it asks the model."""
    model = tiny_llama(moe_config=EXPERTS)
    dense = write_adapter(model, tmp_path, ("w1", "w2", "w3"))
    with pytest.raises(ValueError, match="not found in the base model"):
        peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path)
    loaded = base(model, tmp_path)
    loaded.load_adapter(str(tmp_path), adapter_name="mine")
    assert differences(loaded, dense) < 1e-4 and list(loaded.peft_config) == ["mine"]


def test_engine_and_generate_draw_what_the_sum_draws(tmp_path):
    model = tiny_v2(base=MOE).eval()
    dense = write_adapter(model, tmp_path, ("q_b_proj", *MLP))
    ours, prompt = type(model).from_pretrained(tmp_path), tokens(1, 9)
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    drawn = [
        Engine(each).generate([prompt[0].tolist()], greedy)[0].completions[0].tokens for each in (ours, dense, model)
    ]
    drawn = [list(each) for each in drawn]
    assert drawn[0] == drawn[1] != drawn[2]
    how = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "attention_mask": torch.ones_like(prompt)}
    assert ours.generate(prompt, **how)[0, 9:].tolist() == drawn[1]


UNEVEN = {
    "ranks and scales of their own": {
        "rank": lambda layer: 1 + len(layer) % 3,
        "alpha": lambda layer: 3 if "up" in layer else 8,
    },
    "rslora": {"use_rslora": True},
    "some experts alone": {"keep": lambda layer: re.search(r"experts\.[246]\.(gate|down)_proj", layer)},
    "all but experts": {"keep": lambda layer: "mlp.experts" not in layer},
    "with dropout": {"lora_dropout": 0.1},
}


@pytest.mark.parametrize("case", UNEVEN)
def test_adapters_of_all_kinds(case, tmp_path):
    model = tiny_v2(base=MOE).eval()
    dense = write_adapter(model, tmp_path, ("o_proj", *MLP), **UNEVEN[case])
    assert differences(model, dense) > 0.05
    assert differences(type(model).from_pretrained(tmp_path), dense) < 1e-4
    if case in ("rslora", "some experts alone", "all but experts"):
        assert differences(peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path), dense) < 1e-4


def test_a_second_adapter_waits_to_be_chosen(tmp_path):
    model = tiny_vl2().eval()
    first, second = (
        write_adapter(model, tmp_path / name, ("q_proj", *MLP), alpha=lambda layer, a=alpha: a)
        for name, alpha in (("a", 6), ("b", 2))
        if not (tmp_path / name).mkdir()
    )
    both = peft.PeftModel.from_pretrained(base(model, tmp_path / "a"), tmp_path / "a", adapter_name="a")
    both.load_adapter(tmp_path / "b", adapter_name="b")
    assert differences(both, first) < 1e-4
    both.set_adapter("b")
    assert differences(both, second) < 1e-4


REFUSED = {
    "DoRA": ({"use_dora": True}, r"has use_dora=True, which LoRA of experts and of other parts of a stack cannot have"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "was begun with init_lora_weights='pissa', which changes the weights"),
    "another rank": ({"r": 3}, r"the adapter of \S+ has rank 2, and 2 in lora_B, and adapter_config.json says 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_products_is_refused(case, tmp_path):
    how, match = REFUSED[case]
    model = tiny_v2(base=MOE)
    write_adapter(model, tmp_path, MLP)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | how))
    with pytest.raises(CheckpointError, match=match):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("road", ["ours", "peft's"])
@pytest.mark.parametrize("version", ["0.19.1", "0.19.2.dev0"])
def test_a_peft_that_is_too_old_is_told_of(version, road, tmp_path, monkeypatch):
    model = tiny_v2(base=MOE)
    write_adapter(model, tmp_path, MLP)
    monkeypatch.setattr(peft, "__version__", version)
    rule = rf"LoRA of experts .* needs peft 0\.20 or newer, and {re.escape(version)} is installed: pip install"
    with pytest.raises(CheckpointError, match=rule):
        if road == "ours":
            type(model).from_pretrained(tmp_path)
        else:
            peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path)


def test_of_layers_that_are_modules_an_older_peft_loads_all(tmp_path, monkeypatch):
    model = tiny_v2(base=MOE).eval()
    dense = write_adapter(model, tmp_path, ("o_proj", "q_b_proj"))
    monkeypatch.setattr(peft, "__version__", "0.19.1")
    assert differences(model, dense) > 0.05
    assert differences(type(model).from_pretrained(tmp_path), dense) < 1e-4


def test_a_stack_in_integers_takes_none(tmp_path):
    model = tiny_v2(base=MOE)
    write_adapter(model, tmp_path, MLP)
    with pytest.raises(CheckpointError, match="cannot be loaded, for its weights are stored in integers"):
        type(model).from_pretrained(tmp_path, quantization_config={"quant_method": "int8_weight_only"})


def test_half_a_pair_and_another_shape_are_refused(tmp_path):
    model = tiny_v2(base=MOE)
    write_adapter(model, tmp_path, MLP)
    path, name = tmp_path / "adapter_model.safetensors", "base_model.model.model.layers.1.mlp.experts.3.up_proj.lora_"
    given = load_file(path)
    save_file({key: value for key, value in given.items() if key != f"{name}B.weight"}, path)
    with pytest.raises(CheckpointError, match=r"has lora_A of \S+experts.3.up_proj and not the other of the two"):
        type(model).from_pretrained(tmp_path)
    save_file(given | {f"{name}A.weight": torch.ones(2, 5)}, path)
    with pytest.raises(CheckpointError, match=r"experts.3.up_proj has shape \[\d+, 5\], and the layer's weight"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("road", ["ours", "peft's"])
def test_other_adapters_of_parts_are_refused(road, tmp_path):
    model = tiny_vl2()
    model.save_pretrained(tmp_path / "base")
    expert = "language.model.layers.1.mlp.experts.3.gate_proj"
    save_file({f"base_model.model.{expert}.ia3_l": torch.ones(16, 1)}, tmp_path / "adapter_model.safetensors")
    how = {"target_modules": ["gate_proj", "o_proj"], "feedforward_modules": ["gate_proj"]}
    peft.IA3Config(base_model_name_or_path=str(tmp_path / "base"), **how).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{expert}.*LoRA alone is read"):
        if road == "ours":
            type(model).from_pretrained(tmp_path)
        else:
            peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path)


def test_an_adapter_of_a_stack_that_no_target_names_is_refused(tmp_path):
    """What peft wrote of ``target_parameters``, with a config that has lost them."""
    model = tiny_vl2()
    model.save_pretrained(tmp_path / "base")
    key = "base_model.model.language.model.layers.1.mlp.experts.lora_A.weight"
    save_file({key: torch.ones(4, 32)}, tmp_path / "adapter_model.safetensors")
    peft.LoraConfig(target_modules=["o_proj"], r=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"experts.lora_A\S*, of a parameter that target_parameters .* not name"):
        peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path)


def test_dora_is_read_by_peft_and_refused_where_its_magnitudes_are_not(tmp_path):
    """transformers' `load_adapter`, which reads folders of adapters, leaves them as peft draws them."""
    model = tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path / "base")
    how = peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), how).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    ids = tokens(2, 7)
    again = peft.PeftModel.from_pretrained(base(model, tmp_path), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=0, atol=1e-5)
    for load in (type(model).from_pretrained, model.load_adapter):
        with pytest.raises(CheckpointError, match="holds DoRA"):
            load(str(tmp_path / "adapter"))

"""Calibrated int4 of every family: nearer than to nearest, the order of the layers, experts, and what is refused."""

import copy

import pytest
import torch

from modelwright.checkpoints.calibrate import calibrate_layers
from modelwright.checkpoints.quantize import quantize
from modelwright.checkpoints.quantized_model import quantize_model, settings_for
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.errors import ConfigError, RequestError
from modelwright.layers.quantized import QuantizedExperts, QuantizedLinear
from modelwright.ops.gptq import gptq
from modelwright.ops.refine import refine
from modelwright.ops.weight_only import dequantise, quantise_int4
from tests.checkpoints.test_quantized_model import MODELS, assert_same_state, logits
from tests.fakes import vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama


def batches_of(model, passes=12, tokens=15, seed=0):
    random = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    return [{"input_ids": torch.randint(3, vocabulary, (1, tokens), generator=random)} for _ in range(passes)]


def meets(model, names, batches):
    """The inputs of some layers, ``[rows, width]`` each."""
    rows = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, to=rows[name]: to.append(given[0].flatten(0, -2))
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(rows[name]).float() for name in names]


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", MODELS)
def test_in_every_family_products_are_nearer_than_to_nearest(name):
    plain = MODELS[name]()
    batches = batches_of(plain, passes=20)
    calibrated = quantize_model(MODELS[name](), "int4", calibration=batches)
    nearest = quantize_model(MODELS[name](), "int4")
    assert calibrated.config.quant_config == nearest.config.quant_config
    assert {n: b.shape for n, b in calibrated.named_buffers()} == {n: b.shape for n, b in nearest.named_buffers()}
    errors = []
    layers = [layer for layer, module in nearest.named_modules() if isinstance(module, QuantizedLinear)]
    for layer, x in zip(layers, meets(calibrated, layers, batches), strict=True):
        module, given = nearest.get_submodule(layer), plain.get_submodule(layer).weight.detach().float()
        given = given.T if given.shape != (module.out_features, module.in_features) or name == "imagegpt" else given
        errors.append([
            float((x @ (dequantise(of.stored) - given).T).norm())
            for of in (calibrated.get_submodule(layer), module)
        ])  # fmt: skip
    assert all(own <= to_nearest for own, to_nearest in errors)
    assert sum(own for own, _ in errors) < 0.95 * sum(to_nearest for _, to_nearest in errors)


def rounded(weight, x):
    return refine(weight, x.T @ x, gptq(weight, x.T @ x, 32))


@pytest.mark.slow
def test_later_layers_are_rounded_by_what_rounded_ones_make():
    plain = MODELS["llama"]()
    batches = batches_of(plain)
    calibrated = quantize_model(MODELS["llama"](), "int4", calibration=batches)
    layers = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj")
    both = (meets(model, layers, batches) for model in (calibrated, plain))  # calibrated: the layer before is rounded
    for layer, x, other in zip(layers, *both, strict=True):
        weight = plain.get_submodule(layer).weight.detach()
        wanted = rounded(weight, x)
        assert torch.equal(calibrated.get_submodule(layer).stored.steps, wanted.steps), layer
        assert torch.equal(wanted.steps, rounded(weight, other).steps) == (".layers.0." in layer)


@pytest.mark.slow
def test_each_expert_is_rounded_by_the_tokens_that_chose_it_and_to_nearest_by_few():
    plain, model = MODELS["deepseek_v2"](), MODELS["deepseek_v2"]()
    batches = batches_of(plain, passes=30)
    name = "model.layers.1.mlp.experts"
    given = []  # while the layer's Hessians are taken; then the stacks are replaced
    model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    stacks = quantize_model(model, "int4", calibration=batches).get_submodule(name)
    assert isinstance(stacks, QuantizedExperts) and len(given) == len(batches)
    x, _, chosen = (torch.cat(parts) for parts in zip(*given, strict=True))
    experts, counts = plain.get_submodule(name), []
    for e in range(len(experts.down_proj)):
        own = x[(chosen == e).any(dim=-1)]
        counts.append(len(own))
        gate, up = (own @ experts.gate_up_proj[e].detach().T).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        for stack, met in (("gate_up_proj", own), ("down_proj", hidden)):
            weight = getattr(experts, stack)[e].detach()
            enough = len(met) >= weight.shape[-1]
            wanted = rounded(weight, met) if enough else quantise_int4(weight, 32)
            same = (getattr(stacks, stack)[e] == wanted.steps).float().mean()
            assert same > 0.98 and torch.equal(getattr(stacks, f"{stack}_scale")[e], wanted.scales), (e, stack)
            assert enough or same == 1
    assert min(counts) < 64 <= max(counts), counts


@pytest.mark.slow
def test_pictures_too():
    model = MODELS["deepseek_vl2"]()
    batches = [*batches_of(model, 8), vl2_inputs([[(1, 2)]]), vl2_inputs([[(2, 1)]])]
    first = quantize_model(MODELS["deepseek_vl2"](), "int4", calibration=batches)
    again = quantize_model(MODELS["deepseek_vl2"](), "int4", calibration=batches)
    assert_same_state(first, again)
    with pytest.raises(AssertionError):
        assert_same_state(first, quantize_model(MODELS["deepseek_vl2"](), "int4", calibration=batches[:8]))


@pytest.mark.slow
def test_the_head_and_training_mode():
    model = MODELS["llama"]().train()
    batches = batches_of(model)
    seen = []
    how = settings_for("int4", 32, False, False, model.config)
    calibrate_layers(model, how, batches, lambda done, of: seen.append((done, of)))
    assert model.training and isinstance(model.lm_head, QuantizedLinear) and seen == [(1, 2), (2, 2)]
    assert not torch.equal(model.lm_head.stored.steps, quantise_int4(MODELS["llama"]().lm_head.weight).steps)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "imagegpt"])
def test_the_folder_holds_it_and_the_engine_draws_what_generate_does(tmp_path, name):
    plain = MODELS[name]()
    plain.save_pretrained(tmp_path / "plain")
    how = {"group": 64, "symmetric": name == "llama"}
    calibrated = quantize_model(MODELS[name](), "int4", **how, calibration=batches_of(plain, passes=20))
    report = quantize(tmp_path / "plain", tmp_path / "made", "int4", **how, calibrated=calibrated)
    loaded = type(plain).from_pretrained(tmp_path / "made")
    assert_same_state(calibrated, loaded)
    assert torch.equal(logits(calibrated), logits(loaded))
    nearest = quantize(tmp_path / "plain", tmp_path / "nearest", "int4", **how)
    assert all(report.errors[matrix] >= error for matrix, error in nearest.errors.items())
    assert any(report.errors[matrix] > error for matrix, error in nearest.errors.items())
    if name == "imagegpt":
        return
    prompts = [list(range(5, 14)), [7, 3, 9]]
    engine = Engine(loaded, EngineConfig(max_batch=2, page_size=4, num_pages=32, max_context=60))
    results = engine.generate(prompts, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    for prompt, result in zip(prompts, results, strict=True):
        wanted = loaded.generate(torch.tensor([prompt]), max_new_tokens=8, eos_token_id=None, do_sample=False)
        assert list(result.completions[0].tokens) == wanted[0, len(prompt) :].tolist()


def broken():
    model = MODELS["llama"]()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(1e38)
    return model


@pytest.mark.parametrize(("build", "how", "passes", "error", "message"), [
    (MODELS["llama"], {"method": "int8"}, 8, ConfigError, "calibration is for int4, and the method is int8"),
    (
        MODELS["llama"], {"method": "int4"}, 2, RequestError,
        r"the calibration has 30 tokens, and model\.layers\.0\.self_attn\.q_proj has 64 inputs: it takes as many",
    ),
    (MODELS["llama"], {"method": "int4"}, 0, RequestError, "the calibration has 0 tokens"),
    (
        lambda: tiny_llama(base=HUGGING_FACE), {"method": "int4"}, 8, ConfigError,
        r"the inputs of model\.layers\.0\.self_attn\.q_proj \(32\) must be divisible by group_size \(32\) and by 64",
    ),
    (broken, {"method": "int4"}, 12, RequestError, r"layers\.1\.self_attn\.q_proj meets numbers that are not finite"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(build, how, passes, error, message):
    model = build()
    with pytest.raises(error, match=message):
        quantize_model(model, **how, calibration=batches_of(model, passes))


def test_a_model_calibrated_otherwise_is_not_written(tmp_path):
    plain = MODELS["llama"]()
    plain.save_pretrained(tmp_path / "plain")
    calibrated = quantize_model(copy.deepcopy(plain), "int4", calibration=batches_of(plain))
    with pytest.raises(ConfigError, match=r"the calibrated model is stored as .*group=32.* is asked for"):
        quantize(tmp_path / "plain", tmp_path / "made", "int4", group=64, calibrated=calibrated)
    assert not (tmp_path / "made").exists()

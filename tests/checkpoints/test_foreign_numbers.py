"""Folders that other programs have quantized, read as the numbers that those programs make of them, on every road.

The golden files hold what the programs stored and what they themselves read (``tests/judges/quantized_folders.py``).
"""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.foreign.headers import _FORMATS
from modelwright.checkpoints.foreign.packed import unpack
from modelwright.checkpoints.quantize import quantize
from modelwright.checkpoints.quantized_model import quantize_model
from modelwright.checkpoints.source import refuse_foreign_quantization
from modelwright.checkpoints.weights import weights_in
from modelwright.configs.quantization import BESIDE, READ_PROGRAMS
from modelwright.errors import CheckpointError
from modelwright.families import family_of
from tests.checkpoints.test_foreign_quantization import MODELS
from tests.fakes import GOLDEN, official_weights

STORED = sorted(path.stem for path in (GOLDEN / "quantized").glob("*.safetensors"))
BLOCK = (8, 16)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
PARTS = {"deepseek_vl2": "language_config"}
"""The part of a config in which a vision model's language model says how it is stored."""


def golden(name):
    """The parts, the numbers and the section."""
    file = GOLDEN / "quantized" / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        section = json.loads(opened.metadata()["section"])
    parts = load_file(file)
    return parts, parts.pop("numbers"), section


def folder_with(tmp_path, parts, section, name="config.json"):
    save_file(parts, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps({"quantization_config": section} if name == "config.json" else section))
    return tmp_path


@pytest.mark.parametrize("name", STORED)
def test_the_numbers_are_those_that_the_program_itself_reads(name, tmp_path):
    parts, numbers, section = golden(name)
    found = weights_in(folder_with(tmp_path, parts | {"norm.weight": torch.ones(3)}, section))
    assert found.keys() == {"proj.weight", "norm.weight"}
    header = found["proj.weight"]
    assert header.shape == tuple(numbers.shape) and header.make is not None and header.in_blocks
    assert torch.equal(header.make().to(numbers.dtype), numbers)


def test_every_program_that_is_named_has_a_way_and_a_file_but_two_that_are_written_by_hand_below():
    assert _FORMATS.keys() == READ_PROGRAMS
    seen = {golden(name)[2].get("quant_method", "mlx") for name in STORED}
    assert READ_PROGRAMS - seen == {"fbgemm_fp8", "modelopt"}


@pytest.mark.parametrize("kind", ["tensor", "rows", "four bits"])
def test_fbgemm_and_modelopt(kind, tmp_path):
    drawn = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 32, generator=drawn).to(torch.float8_e4m3fn)
    parts, section = {"a.weight": weight, "a.input_scale": torch.tensor(2.0)}, {"quant_method": "modelopt"}
    if kind == "rows":
        parts, section = {"a.weight": weight}, {"quant_method": "fbgemm_fp8"}
        parts["a.weight_scale"] = torch.rand(8, 1, generator=drawn)
        wanted = weight.float() * parts["a.weight_scale"]
    elif kind == "tensor":
        parts["a.weight_scale"] = torch.tensor(0.25)
        wanted = weight.float() * 0.25
    else:
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
        places = torch.randint(16, (8, 32), generator=drawn)
        scales = torch.rand(8, 2, generator=drawn).to(torch.float8_e4m3fn)
        parts |= {"a.weight": (places[:, 0::2] | places[:, 1::2] << 4).to(torch.uint8), "a.weight_scale": scales}
        parts["a.weight_scale_2"] = torch.tensor(0.5)
        wanted = values[places] * scales.float().repeat_interleave(16, 1) * 0.5
    (header,) = weights_in(folder_with(tmp_path, parts, section)).values()
    assert header.name == "a.weight" and torch.equal(header.make(), wanted)


def test_autoround_in_the_order_of_awq_too(tmp_path):
    parts, numbers, section = golden("awq")
    section |= {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}
    found = weights_in(folder_with(tmp_path, parts, section))
    assert torch.equal(found["proj.weight"].make().to(numbers.dtype), numbers)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_integers_lie_one_after_another_from_the_lowest_bit_on(bits):
    values = torch.randint(1 << bits, (3, 64), generator=torch.Generator().manual_seed(bits))
    rows = [sum(int(value) << bits * place for place, value in enumerate(row)) for row in values]
    words = torch.tensor([[row >> 32 * n & 0xFFFFFFFF for n in range(2 * bits)] for row in rows])
    assert torch.equal(unpack(words.to(torch.int32), bits, 64).long(), values)


@pytest.mark.parametrize("file", BESIDE)
def test_files_beside_the_config_say_it_too(file, tmp_path):
    """As AutoGPTQ, AutoAWQ and modelopt wrote them before configs had sections."""
    name = {"gptq": "gptq_4bit", "awq": "awq", "modelopt": "ct_fp8_tensor"}[BESIDE[file]]
    parts, numbers, section = golden(name)
    said = {key: value for key, value in section.items() if key != "quant_method"}
    found = weights_in(folder_with(tmp_path, parts, said, file))
    assert torch.equal(found["proj.weight"].make().to(numbers.dtype), numbers)


def test_what_a_config_says_counts_before_files_beside_it(tmp_path):
    model = MODELS["llama"]()
    quantize_model(model, "int8")
    model.save_pretrained(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert torch.equal(type(model).from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)


def stored_in_fp8(folder, model, kind):
    """The folder of ``model`` with the matrices of its layers as DeepSeek stores them; gives the numbers they are."""
    model.save_pretrained(folder)
    weights, stored = official_weights(model), {}
    for name, weight in list(weights.items()):
        stored[name] = weight.contiguous()
        if weight.dim() == 2 and "layers." in name and not name.endswith("gate.weight"):
            out, inputs = weight.shape
            padded = F.pad(weight.float(), (0, -inputs % BLOCK[1], 0, -out % BLOCK[0]))
            blocks = padded.unflatten(0, (-1, BLOCK[0])).unflatten(2, (-1, BLOCK[1]))
            scales = blocks.abs().amax((1, 3)) / 448
            small = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name] = small.flatten(2).flatten(0, 1)[:out, :inputs].contiguous()
            stored[f"{name}_scale_inv"] = scales
            spread = scales.repeat_interleave(BLOCK[0], 0)[:out].repeat_interleave(BLOCK[1], 1)[:, :inputs]
            weights[name] = stored[name].float() * spread
    for path in folder.glob("model*"):
        path.unlink()
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (config[PARTS[kind]] if kind in PARTS else config)["quantization_config"] = FP8
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def same(model, weights):
    own = official_weights(model)
    assert own.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(own[name], weight.to(own[name].dtype)), name


def said_in(folder):
    return "quantization_config" in (folder / "config.json").read_text()


@pytest.mark.parametrize("kind", ["llama", "deepseek_v2", "deepseek_vl2"])
def test_every_road_reads_the_numbers(kind, tmp_path):
    model, folder = MODELS[kind](), tmp_path / "src"
    weights = stored_in_fp8(folder, model, kind)
    assert any(not torch.equal(weights[name], own) for name, own in official_weights(model).items())
    (folder / "quantize_config.json").write_text("{}")  # what other programs would take for the new folder's
    loaded = type(model).from_pretrained(folder)
    same(loaded, weights)
    network = family_of(model).network_class
    same(network.read(folder, network.config_class.from_pretrained(folder)), weights)
    assert find_checkpoint(folder).architecture == type(model).__name__  # which serving asks first
    loaded.save_pretrained(tmp_path / "saved")
    convert(folder, tmp_path / "converted")
    for out in ("saved", "converted"):
        same(type(model).from_pretrained(tmp_path / out), weights)
        assert not said_in(tmp_path / out)
    assert not (tmp_path / "converted" / "quantize_config.json").exists()
    quantize(folder, tmp_path / "int8", "int8")
    quantize_model(loaded, "int8")
    same(type(model).from_pretrained(tmp_path / "int8"), official_weights(loaded))


def test_a_checkpoint_is_read_once_with_a_word_and_in_the_type_asked_for(tmp_path, caplog):
    model = MODELS["llama"]()
    weights = stored_in_fp8(tmp_path, model, "llama")
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert [record.message for record in caplog.records if "quantized by" in record.message] == [
        'the checkpoint is quantized by "fp8": its weights are read as the numbers that they stand for, not as they '
        "are stored"
    ]
    assert loaded.dtype == torch.bfloat16
    same(loaded, weights)


def without(parts, name):
    return {key: tensor for key, tensor in parts.items() if key != name}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("gptq_4bit", lambda parts: without(parts, "proj.scales"), "there is no scales"),
        ("gptq_4bit", lambda parts: parts | {"proj.qzeros": parts["proj.qzeros"][:2]}, "of other sizes"),
        ("gptq_4bit", lambda parts: parts | {"proj.qzeros": parts["proj.qzeros"][:, :1]}, "no number of bits"),
        ("awq", lambda parts: parts | {"proj.scales": parts["proj.scales"][:3]}, "of other sizes"),
        ("awq", lambda parts: without(parts, "proj.qzeros"), "there is no qzeros"),
        ("bnb_nf4", lambda parts: without(parts, "proj.weight.quant_state.bitsandbytes__nf4"), "no quant_state"),
        ("bnb_int8", lambda parts: parts | {"proj.SCB": parts["proj.SCB"][:2]}, "a scale of each row"),
        ("bnb_int8", lambda parts: parts | {"proj.weight_format": torch.tensor(2)}, "weight_format 2"),
        ("ct_w4a16", lambda parts: without(parts, "proj.weight_shape"), "there is no weight_shape"),
        ("ct_w4a16", lambda parts: parts | {"proj.weight_packed": parts["proj.weight_packed"][:, :7]}, "of 7 words"),
        ("ct_fp8_block", lambda parts: parts | {"proj.weight_scale": torch.ones(7, 9)}, "fit neither"),
        ("fp8_block", lambda parts: parts | {"proj.weight": torch.ones(32, 128)}, "weight is stored as F32"),
        ("mlx_4bit", lambda parts: parts | {"proj.biases": torch.ones(1, 1)}, "of other sizes"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(name, change, why, tmp_path):
    parts, _, section = golden(name)
    changed = {key: tensor.contiguous() for key, tensor in change(parts).items()}
    folder = folder_with(tmp_path, changed, section)
    with pytest.raises(CheckpointError, match=f"^proj.weight cannot be made of what is stored for it: .*{why}"):
        weights_in(folder)["proj.weight"].make()


@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("gptq_4bit", {"checkpoint_format": "marlin"}, 'checkpoint_format "marlin" is not known'),
        ("awq", {"version": "gemv"}, 'AWQ of version "gemv"'),
        ("autoround_4bit", {"packing_format": "auto_round"}, 'packing_format "auto_round" is not known'),
        ("mlx_4bit", {"mode": "mxfp4"}, 'mode "mxfp4" is not known'),
    ],
)
def test_other_orders_of_the_same_program_are_refused(name, said, why, tmp_path):
    parts, _, section = golden(name)
    with pytest.raises(CheckpointError, match=why):
        weights_in(folder_with(tmp_path, parts, section | said))


def test_rotations_while_a_model_runs_are_refused(tmp_path):
    parts, _, section = golden("ct_w4a16")
    folder = folder_with(tmp_path, parts, section | {"transform_config": {"config_groups": {"v": {}}}})
    assert weights_in(folder).keys() == parts.keys()
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match='quantized by "compressed-tensors"'):
        refuse_foreign_quantization(config, weights_in(folder))


def test_a_folder_that_only_says_so_is_refused_as_before(tmp_path):
    model = MODELS["llama"]()
    stored_in_fp8(tmp_path, model, "llama")
    shutil.copy(tmp_path / "config.json", tmp_path / "said.json")
    model.save_pretrained(tmp_path)
    shutil.move(tmp_path / "said.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r'^the checkpoint is quantized by "fp8"'):
        type(model).from_pretrained(tmp_path)

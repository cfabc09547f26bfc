"""Matrices as other programs store them, and the numbers that those programs themselves make of them.

    python -m tests.judges.quantized_folders [gptq] [awq] [autoround] [bnb] [compressed] [fp8] [mlx]

writes tests/golden/quantized anew, with these installed beside torch and transformers: gptqmodel 7.7, autoawq 0.2.9,
auto-round 0.16, bitsandbytes 0.50, compressed-tensors 0.20, mlx[cpu] 0.32. Each file holds the parts of ``proj``,
``numbers``, and as metadata the section ``quantization_config`` that a folder with such parts has.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

OUT, IN, GROUP = 32, 128, 32
PLACE = Path(__file__).parents[1] / "golden" / "quantized"


def matrix(dtype=torch.float16):
    made = torch.Generator().manual_seed(7)
    return (torch.randn(OUT, IN, generator=made) * torch.rand(OUT, 1, generator=made)).to(dtype)


def keep(name, section, parts, numbers):
    held = {f"proj.{part}": tensor.contiguous().clone() for part, tensor in parts.items()}
    save_file(
        held | {"numbers": numbers.contiguous().clone()},
        PLACE / f"{name}.safetensors",
        {"section": json.dumps(section)},
    )


def gptq():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for name, bits, group, order, form in (
        ("gptq_4bit", 4, GROUP, False, "gptq"),
        ("gptq_4bit_act_order", 4, GROUP, True, "gptq"),
        ("gptq_4bit_v2", 4, GROUP, False, "gptq_v2"),
        ("gptq_2bit", 2, GROUP, False, "gptq"),
        ("gptq_3bit", 3, GROUP, False, "gptq"),
        ("gptq_8bit_whole_rows", 8, -1, False, "gptq"),
    ):
        weight, size = matrix(), IN if group == -1 else group
        of = torch.arange(IN, dtype=torch.int32) // size
        if order:
            of = of[torch.randperm(IN, generator=torch.Generator().manual_seed(1))]
        groups = [weight[:, of == each].float() for each in range(IN // size)]
        low, high = (torch.stack([getattr(each, kind)(1).values for each in groups], 1) for kind in ("min", "max"))
        low, high = low.clamp(max=0), high.clamp(min=0)
        scales = ((high - low) / (2**bits - 1)).half().float()
        zeros = (-low / scales).round().clamp(0 if form == "gptq_v2" else 1, 2**bits - 1)
        layer = TorchLinear(
            bits=bits, group_size=group, sym=False, desc_act=order, in_features=IN, out_features=OUT, bias=False,
            pack_dtype=torch.int32, register_buffers=True,
        )  # fmt: skip
        linear = torch.nn.Linear(IN, OUT, bias=False)
        linear.weight.data = weight.float()
        layer.pack_block(linear, scales, zeros, of)
        layer.post_init()
        numbers = layer.dequantize_weight().t().clone()
        if form == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        stored = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales", "g_idx")}
        section = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": order,
            "checkpoint_format": form,
        }
        keep(name, section, stored, numbers)


def awq():
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    weight = matrix().float()
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = ((groups / scales.float()[..., None]).round() * scales.float()[..., None]).flatten(1).half()
    layer = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.t().contiguous(), zeros=zeros.t().contiguous())
    parts = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
    section = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    keep(
        "awq", section, parts, dequantize_gemm(*(parts[each] for each in ("qweight", "qzeros", "scales")), 4, GROUP).t()
    )


def autoround():
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    weight = matrix().float()
    for bits in (2, 3, 4):
        groups = weight.unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / (2**bits - 1)).half().float()
        zeros = (-low / scales).round().clamp(1, 2**bits - 1)
        linear = torch.nn.Linear(IN, OUT, bias=False)
        linear.weight.data = weight
        layer = QuantLinear(bits, GROUP, IN, OUT, False)
        layer.pack(linear, scales, zeros, device="cpu")
        parts = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
        section = {"quant_method": "auto-round", "bits": bits, "group_size": GROUP, "sym": False,
                   "packing_format": "auto_round:auto_gptq"}  # fmt: skip
        keep(f"autoround_{bits}bit", section, parts, layer(torch.eye(IN, dtype=torch.float16)).t())


def bnb():
    from bitsandbytes import functional as F

    for kind, nested in (("nf4", True), ("nf4", False), ("fp4", False)):
        packed, state = F.quantize_4bit(
            matrix(torch.bfloat16), blocksize=64, compress_statistics=nested, quant_type=kind
        )
        parts = {"weight": packed} | {f"weight.{name}": each for name, each in state.as_dict(packed=True).items()}
        section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
                   "bnb_4bit_use_double_quant": nested}  # fmt: skip
        keep(f"bnb_{kind}{'_nested' * nested}", section, parts, F.dequantize_4bit(packed, state))
    weight, scales, _ = F.int8_vectorwise_quant(matrix())
    parts = {"weight": weight, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    section = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    keep("bnb_int8", section, parts, F.int8_vectorwise_dequant(weight, scales))


def compressed():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = matrix(torch.bfloat16)
    for name, form, args in (
        ("ct_w4a16", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}),
        (
            "ct_w4a16_zeros",
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False},
        ),
        ("ct_w8a16", "pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("ct_w8a8", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("ct_fp8_channel", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("ct_fp8_tensor", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        (
            "ct_fp8_block",
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [24, 48]},
        ),
        (
            "ct_nvfp4",
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        ("ct_mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
    ):
        weights = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights, format=form)
        strategy, extra = args["strategy"], {}
        if strategy == "tensor":
            low, high = weight.amin().reshape(1), weight.amax().reshape(1)
        elif strategy == "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        elif strategy == "block":
            tall, wide = args["block_structure"]
            pad = torch.nn.functional.pad(weight, (0, -IN % wide, 0, -OUT % tall))
            blocks = pad.unflatten(0, (-1, tall)).unflatten(2, (-1, wide))
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        else:
            groups = weight.unflatten(1, (-1, args["group_size"]))
            low, high = groups.amin(-1), groups.amax(-1)
        if strategy == "tensor_group":
            extra["weight_global_scale"] = torch.tensor([448 * 6 / weight.abs().max().float()])
            scale, zero = calculate_qparams(low, high, weights, global_scale=extra["weight_global_scale"])
        else:
            scale, zero = calculate_qparams(low, high, weights)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero} | extra
        compressor = BaseCompressor.get_value_from_registry(form)
        parts = compressor.compress(state, scheme)
        numbers = compressor.decompress(parts, scheme)["weight"]
        group = {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json()), "format": form}
        section = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }
        keep(name, section, parts, numbers)


def fp8():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=(16, 64), scale_fmt="float"))
    made = Fp8Quantize(settings).convert({"proj.weight": matrix(torch.bfloat16)})
    stored = {name: [each] for name, each in made.items()}
    numbers = Fp8Dequantize(settings).convert(stored, full_layer_name="proj.weight")["proj.weight"]
    parts = {name.removeprefix("proj."): each for name, each in made.items()}
    section = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 64]}
    keep("fp8_block", section, parts, numbers[0] if isinstance(numbers, list) else numbers)


def mlx():
    import mlx.core as mx
    import numpy as np

    for bits in (3, 4, 8):
        weight = mx.array(matrix(torch.float32).numpy())
        packed, scales, biases = mx.quantize(weight, group_size=GROUP, bits=bits)
        numbers = torch.from_numpy(np.array(mx.dequantize(packed, scales, biases, group_size=GROUP, bits=bits)))
        parts = {
            name: torch.from_numpy(np.array(each))
            for name, each in (("weight", packed), ("scales", scales), ("biases", biases))
        }
        keep(f"mlx_{bits}bit", {"group_size": GROUP, "bits": bits, "mode": "affine"}, parts, numbers)


if __name__ == "__main__":
    for each in sys.argv[1:] or ("gptq", "awq", "autoround", "bnb", "compressed", "fp8", "mlx"):
        globals()[each]()

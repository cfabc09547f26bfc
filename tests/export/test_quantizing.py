"""onnxruntime's own tools on our graphs: no warning at load, shapes by symbols, and weights that can be quantized."""

import logging
from inspect import getsource

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import quant_pre_process
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from modelwright.export.graphs import onnx_config_class
from modelwright.export.trace import write_graph
from tests.export.graphs import tiny_imagegpt
from tests.fakes import GROUPED, MHA, NOAUX, YARN, tiny_v2, tiny_vl2
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

CUTS_SHAPES = '"start"' in getsource(SymbolicShapeInference._infer_Shape)
"""Whether onnxruntime's symbols know what opset 15 lets Shape say; releases before 1.31 take the whole shape."""
LENGTHS = {"batch": 2, "sequence": 3, "past": 4, "past + sequence": 7, "tiles": 2}
ROUTED = 8 * 2
MADE = {
    # name: (model, how many products have a weight, by graph)
    "Llama": (lambda: tiny_llama(base=HUGGING_FACE, num_hidden_layers=1), {"decoder": 7 + 1}),
    "ImageGPT": (lambda: tiny_imagegpt(n_layer=1), {"decoder": 4 + 1}),
    "DeepSeek-V2": (lambda: tiny_v2(base=GROUPED), {"decoder": 2 * 4 + 3 + 1 + ROUTED + 3 + 1}),
}
MORE = {
    "Llama's experts": (lambda: tiny_llama(num_layers=1, moe_config=EXPERTS), {"decoder": 4 + 1 + 4 * 2 + 1}),
    "noaux_tc": (lambda: tiny_v2(base=NOAUX), {"decoder": 2 * 4 + 3 + 1 + ROUTED + 3 + 1}),
    "yarn": (lambda: tiny_v2(base=YARN), {"decoder": 2 * 3 + 3 + 1 + ROUTED + 3 + 1}),
    "heads": (lambda: tiny_v2(base=MHA), {"decoder": 2 * 4 + 3 + 1 + ROUTED + 3 + 1}),
    "DeepSeek-VL2": (tiny_vl2, {"decoder": None, "embed": 0, "vision": None}),
}


def graphs_of(make, folder):
    model = make()
    config = onnx_config_class(type(model))(model.config)
    with config.prepared(model):
        return {graph.name: write_graph(graph, folder) for graph in config.graphs(model, torch.float32)}


def run(path):
    """All outputs for one set of drawn inputs."""
    session, random = onnxruntime.InferenceSession(str(path)), np.random.default_rng(0)
    feeds = {}
    for each in session.get_inputs():
        shape = [LENGTHS.get(length, length) for length in each.shape]
        if each.name == "input_ids":
            feeds[each.name] = random.integers(2, 16, size=shape)
        elif each.type == "tensor(int64)":
            feeds[each.name] = np.full(shape, int(each.name == "attention_mask"))
        else:
            feeds[each.name] = random.standard_normal(shape).astype(np.float32)
    return session.run(None, feeds)


def check(make, products, folder, capfd):
    for name, path in graphs_of(make, folder).items():
        capfd.readouterr()
        plain = run(path)
        assert capfd.readouterr().err == "", name
        ready = folder / f"{name}.ready.onnx"
        quant_pre_process(path, ready, skip_symbolic_shape=not CUTS_SHAPES)
        for ours, theirs in zip(plain, run(ready), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        quantizer = MatMulNBitsQuantizer(onnx.load(path), bits=8, block_size=32, is_symmetric=True)
        logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
        quantizer.process()
        onnx.save(quantizer.model.model, folder / f"{name}.q8.onnx")
        kinds = [node.op_type for node in quantizer.model.model.graph.node]
        assert "Gemm" not in kinds and "Loop" not in kinds
        if products[name] is not None:
            assert kinds.count("MatMulNBits") == products[name]
        rounded = run(folder / f"{name}.q8.onnx")[0]
        assert np.abs(rounded - plain[0]).mean() < 0.03 * np.abs(plain[0]).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_graphs_are_prepared_and_quantized(name, tmp_path, capfd):
    check(*MADE[name], tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_graphs_are_prepared_and_quantized(name, tmp_path, capfd):
    check(*MORE[name], tmp_path, capfd)
